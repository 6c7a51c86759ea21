"""States of the random number generators: saved, restored, and kept apart."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_of_rank(seed: int, rank: int) -> int:
    """A seed for process `rank` of a run with `seed`, `seed` itself for process zero.

    Not `seed + rank`: process 1 of seed 0 would draw what process 0 of seed 1 draws, and the seeds
    of a study would not be independent.
    """
    if rank == 0:
        return seed
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> 1)


def rng_state() -> dict[str, Any]:
    """The states of Python's, NumPy's, torch's and this process's CUDA generators.

    They are plain tensors, lists and numbers, so a checkpoint that holds them still loads with
    `weights_only=True`.
    """
    legacy: Any = np.random.get_state()  # noqa: NPY002
    name, keys, position, has_gauss, cached = legacy
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        (name, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Draw from generators seeded by `seed`; afterwards they are as if nothing had been drawn.

    Measurements in mid-training run in it, so that a run draws the same numbers whether or not
    it is measured.
    """
    state = rng_state()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_rng_state(state)
