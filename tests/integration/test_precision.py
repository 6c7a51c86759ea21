"""Mixed precision: bfloat16 in every family, and what the loss scale of float16 does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flexgen.training import latest_checkpoint, load_checkpoint
from tests.conftest import SMALL

VAE = (
    "model=vae",
    "likelihood=gaussian",
    "callbacks=[progress,samples,reversal,quality,checkpoint]",
)


@pytest.mark.parametrize(
    "family", [("model=gan",), ("model=wgan",), ("model=wgan_gp",), VAE], ids=lambda f: f[0][6:]
)
def test_bf16_mixed_trains_with_float32_weights(
    flexgen: Callable[..., Path], family: tuple[str, ...]
) -> None:
    words = (*SMALL, *family, "report=false")
    weights, exact = (
        load_checkpoint(latest_checkpoint(flexgen("train", *words, option, run_dir=name)))
        for name, option in (
            ("mixed", "trainer.precision=bf16-mixed"), ("plain", "trainer.precision=32-true")
        )
    )  # fmt: skip
    optimizers = zip(weights["optimizer_states"], exact["optimizer_states"], strict=True)
    assert all(len(a["state"]) == len(b["state"]) > 0 for a, b in optimizers)
    trained = [name for name in exact["state_dict"] if name.endswith("weight")]
    for name in trained:
        mixed, plain = weights["state_dict"][name], exact["state_dict"][name]
        assert mixed.dtype == torch.float32
        assert not torch.equal(mixed, plain)
        torch.testing.assert_close(mixed, plain, atol=0.05, rtol=0.1)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_other_true_precisions_are_refused_by_name(
    flexgen: Callable[..., Path], precision: str
) -> None:
    with pytest.raises(SystemExit, match=rf"`trainer.precision={precision}` does not fit"):
        flexgen("train", *SMALL, f"trainer.precision={precision}", "report=false")
