"""`model=ali`, `bigan` and `hali` through every command: codes by encoder, search and draws."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexgen.runs.run import open_run
from flexgen.training import load_checkpoint

TINY = (
    "data=digits", "data.num_validation=60", "data.num_test=60", "data.batch_size=16",
    "latent_dim=5", "trainer=cpu", "steps=4", "model.log_every=2",
    "network.generator.hidden_features=[8]", "network.encoder.hidden_features=[8]",
    "network.joint_critic.hidden_features=[8]", "callbacks.checkpoint.every=2",
    "callbacks.checkpoint.keep=null", "report=false",
)  # fmt: skip
FEW = "callbacks=[inference,aggregate_posterior,checkpoint]"
MEASURED = (
    "callbacks=[inference,reversal,posterior_score,reconstructions,checkpoint]",
    "callbacks.reversal.n=60", "callbacks.reversal.num_resamples=40",
    "callbacks.reversal.options.steps=3", "callbacks.posterior_score.n=30",
    "callbacks.posterior_score.sigma=0.5", "callbacks.posterior_score.num_resamples=40",
    "callbacks.posterior_score.options={num_temperatures: 2, leapfrog_steps: 1}",
)  # fmt: skip
FIT = (
    "refit.n=80", "refit.n_held_out=40", "refit.keep=always", "more=1", "refit.sigma=0.5",
    "refit.posterior={num_temperatures: 2, leapfrog_steps: 1}", "refit.options.steps=3",
)  # fmt: skip

Command = Callable[..., Path]


def values_of(run: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((run / "metrics.json").read_text())["values"]
    return values


def states_agree(a: Path, b: Path, step: int) -> None:
    one, other = (load_checkpoint(r / "checkpoints" / f"step={step:08d}.ckpt") for r in (a, b))
    for key in ("state_dict", "optimizer_states"):
        assert str(one[key]) == str(other[key])
    for name, value in one["state_dict"].items():
        assert torch.equal(other["state_dict"][name], value), name


def test_codes_are_found_by_encoder_search_and_draws(flexgen: Command) -> None:
    run = flexgen("train", "model=bigan", *TINY, FEW)
    values = values_of(run)
    assert {"posterior/pag", "own/posterior_pag", "posterior/energy"} <= values.keys()
    assert (run / "images" / "aggregate_posterior").is_dir()

    opened = open_run(run)
    model, (x, _) = opened.latent, opened.data.split("validation", 60)
    z = model.encode(x)
    assert torch.equal(z, model.encode(x))  # a BiGAN's draws nothing
    error = 0.5 * (x - model.decode(z)).square().flatten(1).sum(1)
    assert values["posterior/error"] == pytest.approx(float(error.double().mean()), rel=1e-5)
    start = opened.reverse(x, init="encoder", steps=1, lr=1e-9, method="adam")
    torch.testing.assert_close(start.z, z, atol=1e-6, rtol=0)
    assert float(opened.reverse(x, init="encoder", steps=5).loss.sum()) < float(error.sum())

    child = flexgen(
        "refit", f"run={run}", "prior=gaussian", "refit.source=encoder", *FIT, run_dir="child"
    )
    assert values_of(child)["prior/stage"] == 1
    train_codes = model.encode(opened.data.split("train", 80, 0)[0])
    fitted = open_run(child).latent.prior.current().mean
    torch.testing.assert_close(fitted, train_codes.mean(0), atol=1e-4, rtol=1e-4)
    assert "refit/gain" not in values_of(child)  # known of draws of p(z|x) alone

    few = ("reverse.options.method=adam", "reverse.options.steps=2", "reverse.num_resamples=40")
    flexgen("reverse", f"run={run}", "n=60", "reverse.options.init=encoder", *few)
    flexgen("sample", f"run={run}", "n=6", "prior=gaussian", "n_fit=60")
    flexgen("sample", f"run={run}", "interpolate=slerp", "codes=encoder", "pairs=3", "frames=4")
    (path,) = (run / "samples").glob("*codes=encoder_slerp*.safetensors")
    found = load_file(path)
    torch.testing.assert_close(
        found["z"][:, 0], model.encode(found["real"][:, 0]), atol=1e-5, rtol=1e-5
    )
    flexgen("evaluate", f"run={run}")
    assert json.loads((run / "evaluation.json").read_text())["values"] == {
        name: value for name, value in values.items() if not name.startswith("loss/")
    }


def test_priors_are_compared_by_the_encoders_codes_and_the_joint_critic(flexgen: Command) -> None:
    small = [word for word in TINY if not word.startswith(("data", "latent_dim"))]
    words = (
        "data=ring8",
        "data.num_train=200",
        "data.num_validation=80",
        "latent_dim=2",
        "data.batch_size=16",
    )
    run = flexgen("train", "model=ali", *small, *words, "callbacks=[inference,checkpoint]")
    flexgen("compare", f"run={run}", "n=60", "n_fit=80", "seeds=2", "priors=own,gaussian,masked")
    table = (run / "comparison" / "compare.csv").read_text()
    assert all(name in table for name in ("own (Normal)", "gaussian", "masked"))


def test_hierarchical_ali_reconstructs_from_each_level(flexgen: Command) -> None:
    words = ("model=hali", *TINY, "prior.levels=[3,2]", *MEASURED)
    run = flexgen("train", *words, "callbacks.reversal.options.init=encoder")
    values = values_of(run)
    for name in ("posterior/pag", "pag/unit", "pag/posterior"):
        assert {f"{name}_level1", f"{name}_level2"} <= values.keys()
    assert (run / "images" / "reconstructions_level2").is_dir()
    opened = open_run(run)
    z = torch.zeros(60, 5)
    z[:, 3:] = torch.randn(60, 2)
    # Another second level with the first kept is the same picture: the generator sees the first.
    same = opened.latent.decode(torch.zeros(60, 5))
    torch.testing.assert_close(opened.latent.decode(z), same)
    assert values["posterior/error_level2"] > 0


def test_hierarchical_ali_resumes_to_the_bit(flexgen: Command) -> None:
    words = (
        *TINY, "model=hali", "model.ema_decay=0.9", "model.simultaneous=true",
        "model.critic_steps=1", "callbacks=[inference,refit,checkpoint]", "callbacks.refit.at=[2]",
        "prior@callbacks.refit.prior=gaussian", "callbacks.refit.n=40",
        "callbacks.refit.n_held_out=40", "callbacks.refit.source=encoder",
        "callbacks.refit.keep=always",
    )  # fmt: skip
    whole = flexgen("train", *words, run_dir="whole")
    run = flexgen("train", *words, "steps=3", run_dir="cut")
    flexgen("resume", f"run={run}", "steps=4")
    states_agree(whole, run, 4)
    assert values_of(whole)["posterior/error"] == values_of(run)["posterior/error"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("model=ali", "network=dcgan_small"), "this network has no joint_critic.*`network=mlp`"),
        (("model=ali", "prior=vamp"), "Vamp prior is made of a VAE.*use prior=mixture"),
        (("callbacks=[inference]",), "InferenceScore needs an encoder.*train model=vae, ali"),
        (
            ("callbacks=[reversal]", "callbacks.reversal.options.init=encoder"),
            "codes of an encoder are asked for, and a Adversarial has none; train model=ali",
        ),
    ],
    ids=["network", "vamp", "no-encoder", "no-start"],
)
def test_what_does_not_go_together_is_refused_in_a_line(
    flexgen: Command, words: tuple[str, ...], told: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        flexgen("train", "data=digits", "latent_dim=5", "steps=1", "trainer=cpu", *words)
    message = str(stopped.value.code)
    assert re.search(told, message), message
    assert "\n" not in message
