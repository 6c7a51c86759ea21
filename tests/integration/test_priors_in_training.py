"""Each prior in a run: saved, loaded, resumed to the same bits, and shared by two processes.

A prior with something to learn is fitted to codes in mid-run too, as a second stage. Those made of
a VAE's posteriors have a VAE's run, in `test_vamp.py`, those over maps theirs, in `test_vq_vae.py`
and `test_resnet_vae.py`.
Run as a script, this file trains all priors
in the processes that torchrun started.
"""

import functools
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from flexgen.models import Latent
from flexgen.priors import as_prior, maximise_likelihood
from flexgen.runs import resolvers
from flexgen.runs.run import open_run
from flexgen.runs.saved_config import load_config, relocate
from flexgen.runs.train import resume, train
from flexgen.training import find_checkpoints, isolated_rng, load_checkpoint
from tests.conftest import CONF

RUN = (
    "data=ring8", "data.num_train=320", "data.num_validation=40", "data.num_test=10",
    "data.batch_size=32", "latent_dim=2", "network.generator.hidden_features=[8]",
    "network.critic.hidden_features=[8]", "model.critic_steps=2", "steps=8",
    "callbacks=[refit,checkpoint]", "callbacks.refit.at=[3]", "callbacks.refit.n=100",
    "callbacks.refit.n_held_out=40", "callbacks.refit.keep=always",
    "callbacks.refit.source=reversal",
    "callbacks.refit.options={method: adam, steps: 3}", "callbacks.refit.progress=false",
    "callbacks.checkpoint.every=5", "callbacks.checkpoint.keep=null", "paths.run_dir=nowhere",
    "report=false",
    "+callbacks.drawn._target_=tests.integration.test_priors_in_training.Drawn",
)  # fmt: skip
FLOW = {"num_layers": 2, "hidden_features": [8]}
OPTIONS: dict[str, dict[str, Any]] = {
    "autoregressive": FLOW,
    "maf": FLOW,
    "nsf": FLOW,
    "nsf_deep": FLOW,
    "realnvp": FLOW,
    "realnvp_deep": FLOW,
    "realnvp_small": FLOW,
    "zuko_nsf": {"transforms": 1, "hidden_features": [8]},
    "per_class": {"base": {"_target_": "flexgen.priors.Gaussian", "latent_dim": 2}},
}
SMALL = {
    "steps": 3,
    "chain_steps": 3,
    "num_samples": 100,
    "train_samples": 100,
    "num_calibration": 20,
}
"""What takes long, in any prior that has it."""
CHOSEN = ("autoregressive", "lars", "noise_contrastive", "energy")
"""Whose draws are chosen: they cannot learn from a game."""
ELSEWHERE = (
    "vamp", "mixture_of_posteriors", "categorical", "pixelcnn", "pixelcnn_levels", "pixelcnn_real",
    "spherical_mixture", "top_down",
)  # fmt: skip
NAMES = sorted(
    path.stem
    for path in (CONF / "prior").glob("*.yaml")
    if (find_spec("zuko") or not path.stem.startswith("zuko")) and path.stem not in ELSEWHERE
)


class Drawn(pl.Callback):
    """Saves what a process ends with, and codes that it draws then."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            own = pl_module.prior().sample((50,))
        end = {"state": pl_module.state_dict(), "own": own, "codes": codes(pl_module)}
        torch.save(end, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


def codes(model: Latent) -> Tensor:
    """Codes by a seed of their own."""
    with isolated_rng(0), model.evaluating():
        drawn: Tensor = model.prior().sample((50,))
    return drawn


@functools.cache
def composed(name: str, *overrides: str) -> dict[str, Any]:
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(name, list(overrides)), resolve=True)  # type: ignore[return-value]


def learns(prior: dict[str, Any]) -> bool:
    return as_prior(instantiate(prior)).learns


def trained(name: str, run: Path, trainer: str) -> Path:
    """A run with the prior of that name, from the start where its draws have a gradient, and as a
    second stage if it can learn."""
    conditional = f"conditional={str(name == 'per_class').lower()}"
    words = (*RUN, conditional, f"trainer={trainer}")
    config = relocate(composed("train", *words), [("nowhere", str(run))])
    own = composed(f"prior/{name}", "+latent_dim=2", "+num_classes=8")["prior"]
    small = {key: value for key, value in SMALL.items() if key in own}
    prior = own | small | OPTIONS.get(name, {})
    config["callbacks"]["refit"]["prior"] = prior
    if name not in CHOSEN:
        config["model"]["prior"] = prior
    if not learns(prior):
        del config["callbacks"]["refit"]
    # Two thousand steps of maximum likelihood are no more of a test than five.
    with pytest.MonkeyPatch.context() as patched:
        for module in ("hierarchical", "mixture", "staged"):
            fit_in_five = functools.partial(maximise_likelihood, steps=5)
            patched.setattr(f"flexgen.priors.{module}.maximise_likelihood", fit_in_five)
        return train(config).folder


def end(run: Path, rank: int = 0) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(run / f"rank{rank}.pt")
    return saved


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("name", NAMES)
def test_a_prior_is_saved_loaded_and_resumed(name: str, tmp_path: Path) -> None:
    run = trained(name, tmp_path / "run", "cpu")
    undisturbed = end(run)
    model = open_run(run, trust=True).model
    assert differing(model.state_dict(), undisturbed["state"]) == []
    assert torch.equal(codes(model), undisturbed["codes"])

    stopped = Path(shutil.copytree(run, run.with_name("stopped")))
    middle, last = find_checkpoints(stopped)
    last.unlink()
    (stopped / "rank0.pt").unlink()
    at_middle = load_checkpoint(middle)["state_dict"]
    assert int(at_middle["prior.stage"]) == ("refit" in load_config(run, trust=True)["callbacks"])
    assert differing(at_middle, undisturbed["state"]) != []
    resume(load_config(stopped, trust=True))
    resumed = end(stopped)
    assert differing(resumed["state"], undisturbed["state"]) == []
    assert torch.equal(resumed["codes"], undisturbed["codes"])
    assert torch.equal(resumed["own"], undisturbed["own"])


@pytest.mark.slow
def test_two_processes_share_every_prior_and_draw_apart(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         __file__, str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for name in NAMES:
        first, second = (end(tmp_path / name, rank) for rank in (0, 1))
        assert differing(first["state"], second["state"]) == [], name
        assert torch.equal(first["codes"], second["codes"]), name
        assert not torch.equal(first["own"], second["own"]), name


if __name__ == "__main__":
    for name in NAMES:
        trained(name, Path(sys.argv[1]) / name, "ddp_cpu")
