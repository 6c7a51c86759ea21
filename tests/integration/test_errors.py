"""Each mistake gets one line that names the remedy, a non-zero exit, and loses nothing."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flexgen.objectives import WGANGP
from flexgen.priors import Gaussian
from flexgen.runs.folder import alone
from flexgen.training import find_checkpoints, latest_checkpoint, load_checkpoint
from tests.conftest import REFIT, SMALL
from tests.training import at_call, interrupt, not_a_number

Run = Callable[..., Path]


def message(flexgen: Run, command: str, *words: str, **options: Any) -> str:
    with pytest.raises(SystemExit) as stopped:
        flexgen(command, *words, **options)
    told = stopped.value.code
    assert isinstance(told, str), "exit status 1 with a message"
    assert told.startswith(f"flexgen {command}: ")
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("trian", [], "did you mean `flexgen train`"),
        (
            "train",
            ["model.critc_steps=3"],
            "unknown key `model.critc_steps`; did you mean `critic_steps`",
        ),
        ("train", ["stepz=3"], "did you mean `steps`"),
        ("train", ["data.flip=true"], "`data.flip`, which is a key of another part"),
        (
            "train",
            ["model=vae", "prior=masked", "callbacks=[samples,reversal,quality,checkpoint]"],
            "a VAE needs the density of its prior",
        ),
        ("train", ["prior=norml"], "no prior called 'norml'; did you mean `prior=normal`"),
        ("train", ["model=wgan_pg"], "did you mean `model=wgan_gp`"),
        ("train", ["experiment=demoo"], "did you mean `experiment=demo`"),
        ("train", ["model.critic_steps=0"], "`critic_steps` must be a whole number of"),
        ("train", ["model.objective.penalty_weight=-1"], "`penalty_weight` must be at least 0"),
        ("train", ["model.ema_decay=2"], "`ema_decay` must be in [0, 1)"),
        ("train", ["model.compile=both"], "double backward; set `model.compile=generator`"),
        ("train", ["steps=0"], "`steps` must be a whole number of at least 1"),
        ("train", ["data.batch_size=0"], "`batch_size` must be a whole number of at least 1"),
        ("train", ["+model.typo=1"], "unexpected keyword argument 'typo'"),
        (
            "train",
            ["prior.latent_dim=3"],
            "prior of codes (3,), generator, critic and data (2,) do not fit",
        ),
        ("train", ["network.generator.shape=[3]"], "must make data of shape (2,), got (3,)"),
        ("train", ["network.critic.shape=[3]"], "do not fit"),
        ("train", ["callbacks.quality.n=0"], "`n` must be a whole number of at least 1"),
        ("train", ["callbacks.checkpoint.every=0"], "`every` must be a whole number of at least 1"),
        ("train", ["+callbacks=refit"], "callbacks.refit.at"),
        (
            "train",
            ["network.generator._target_=flexgen.networks.Nothing"],
            "cannot import `flexgen.networks.Nothing` (ModuleNotFoundError: No module named",
        ),
        (
            "train",
            ["network.generator._target_=flexgen.networks.Nothing"],
            "there is no such name in it; check the spelling of `_target_`",
        ),
        (
            "train",
            ["network.generator._target_=not_installed.Net"],
            "install it, or put its folder on PYTHONPATH or in the working directory",
        ),
        (
            "train",
            ["paths.run_dir=out/lr=1e-3"],
            "cannot read `paths.run_dir=out/lr=1e-3` (mismatched input '=' expecting <EOF>); quote "
            "a value with special characters: 'paths.run_dir=\"out/lr=1e-3\"'",
        ),
        ("train", ["steps"], "cannot read `steps`; write key=value"),
        ("train", ["a.b=[16"], "cannot read `a.b=[16`: a bracket is open; close it in `a.b`"),
        ("train", ["prior=a,b"], "`prior=a,b` gives several values; add -m for a run of each"),
        ("train", ["name=it's"], "a quote is open; close it, or quote the value: 'name="),
        ("train", ["seed=range(3)"], "`seed=range(3)` gives several values; add -m"),
        ("train", ["+steps=3"], "`steps` is there already; leave out the +"),
        ("train", ["+prior=normal"], "`prior` is there already; leave out the +"),
        ("train", ["++schedule.warmup=9"], "no keys, got `schedule.warmup`; add schedule=warmup"),
        ("train", ["~steps"], "no run can be without `steps`; leave out ~steps"),
        ("train", ["prior=null"], "`prior=null` names no prior; there are"),
        ("train", ["prior=prior/normal"], "did you mean `prior=normal`"),
        ("train", ["experiment=mnist_static"], "did you mean `experiment="),
        ("train", ["name=${nosuch:1}"], "`${nosuch:…}` is no resolver"),
        ("train", ["name=${oc.env:NO_SUCH_NAME}"], "variable NO_SUCH_NAME is not set; export it"),
        ("train", ["--config-dir", "nowhere"], "there is no folder"),
        ("train", ["+trainer.limit_val_batches=2"], "`trainer.limit_val_batches` has no effect"),
        ("evaluate", [], "which run? give run=PATH"),
        ("evaluate", ["run=nowhere"], "not a run directory"),
        ("table", ["nowhere"], "nowhere"),
        ("report", ["nowhere"], "nowhere"),
    ],
)
def test_mistakes_on_the_command_line(
    flexgen: Run, command: str, words: list[str], expected: str
) -> None:
    told = message(flexgen, command, *(SMALL if command == "train" else ()), *words)
    assert expected in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a: 1\n  b: 2\n", "cannot read the YAML"),
        (b"# caf\xe9\nsteps: 3\n", "mine.yaml is not UTF-8"),
        (b"steps: 3\n", "begin with the line `# @package _global_`"),
        (b"defaults:\n  - mine\n", "in a circle"),
        (b"defaults:\n  - prior: uniform\n", "write `override /prior: uniform`"),
    ],
)
def test_mistakes_in_yaml_of_ones_own(flexgen: Run, text: bytes, expected: str) -> None:
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_bytes(text)
    assert expected in message(flexgen, "train", *SMALL, "--config-dir", "conf", "experiment=mine")


def test_keys_of_a_callback_that_is_left_out_are_told(flexgen: Run) -> None:
    with pytest.raises(SystemExit, match="has keys, and samples is not among"):
        flexgen("train", "experiment=demo", "callbacks=[quality]", "trainer=cpu")


def test_a_quoted_value_may_hold_what_the_grammar_uses(flexgen: Run) -> None:
    flexgen("train", *SMALL, "report=false", "steps=1", 'name="a=b, {c}"')
    run = Path("run").rename("lr=1e-3")
    flexgen("sample", f"run={run}", "n=4")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data=mnist", "data.root=nowhere"], "FLEXGEN_DATA"),
        (["data=folder", "data.root=nowhere"], "nowhere"),
    ],
)
def test_missing_parts(flexgen: Run, words: list[str], expected: str) -> None:
    assert expected in message(flexgen, "train", *words)


def test_a_refused_start_leaves_nothing_behind(flexgen: Run) -> None:
    message(flexgen, "train", *SMALL, "steps=0")
    flexgen("train", *SMALL, "report=false")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(flexgen: Run) -> None:
    assert "set `trainer=cpu`" in message(flexgen, "train", *SMALL, "trainer=gpu")


def test_a_second_run_in_the_same_directory_is_refused(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    before = latest_checkpoint(run).read_bytes()
    assert f"flexgen resume run={run}" in message(flexgen, "train", *SMALL)
    assert latest_checkpoint(run).read_bytes() == before


def test_a_parent_folder_of_runs_names_the_run(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    assert f"did you mean {run}" in message(flexgen, "evaluate", f"run={run.parent}")


@pytest.mark.parametrize(("player", "call"), [("critic", 16 * 5 + 2), ("generator", 17)])
def test_nan_names_the_term_the_step_and_the_last_good_checkpoint(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, player: str, call: int
) -> None:
    at_call(monkeypatch, WGANGP, player, call, not_a_number)
    told = message(flexgen, "train", *SMALL)
    assert f"loss/{player} is nan at generator step 17" in told
    assert "step=00000010.ckpt" in told


def test_a_weight_that_is_no_number_is_not_saved(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(loss: torch.Tensor) -> torch.Tensor:
        loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    at_call(monkeypatch, WGANGP, "generator", 20, overflow)
    told = message(flexgen, "train", *SMALL)
    assert "is not finite at generator step 20" in told
    assert latest_checkpoint(Path("run")).name == "step=00000010.ckpt"


def test_a_damaged_checkpoint_names_another(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    path = latest_checkpoint(run)
    path.write_bytes(path.read_bytes()[:1000])
    for command in ("evaluate", "sample"):
        assert "cut short" in message(flexgen, command, f"run={run}")
    assert "cut short" in message(flexgen, "resume", f"run={run}", "steps=40")
    flexgen("resume", f"run={run}", "steps=35", "checkpoint=step=00000020.ckpt", "report=false")
    flexgen("sample", f"run={run}", "checkpoint=step=00000020.ckpt")
    left = [p.name for p in (run / "checkpoints").glob("*.left")]
    assert left == ["step=00000030.ckpt.left"]
    assert [p.name for p in find_checkpoints(run)][-2:] == [
        "step=00000030.ckpt", "step=00000035.ckpt",
    ]  # fmt: skip


def test_going_on_from_an_earlier_checkpoint_survives_a_stop(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = flexgen("train", *SMALL, "report=false")
    at_call(monkeypatch, WGANGP, "generator", 3, interrupt)
    with pytest.raises(SystemExit) as stopped:
        flexgen("resume", f"run={run}", "checkpoint=step=00000010.ckpt", "report=false")
    assert stopped.value.code == 130
    assert latest_checkpoint(run).name == "step=00000013.ckpt"


def test_a_checkpoint_whose_optimizer_is_damaged_is_told(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    path = latest_checkpoint(run)
    checkpoint = load_checkpoint(path)
    for state in checkpoint["optimizer_states"][0]["state"].values():
        del state["exp_avg_sq"]
    torch.save(checkpoint, path)
    told = message(flexgen, "resume", f"run={run}", "steps=40")
    assert f"{path} does not fit the run's configuration" in told
    assert "last whole checkpoint" not in told


def test_optimizer_states_of_another_shape_are_refused(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    path = latest_checkpoint(run)
    checkpoint = load_checkpoint(path)
    state = checkpoint["optimizer_states"][0]["state"][0]
    state["exp_avg"] = torch.zeros(1)  # a fused kernel would read and write beyond it
    torch.save(checkpoint, path)
    told = message(flexgen, "resume", f"run={run}", "steps=40")
    assert "an optimizer's `exp_avg` has shape (1,)" in told
    assert "last whole checkpoint" not in told


def test_two_processes_do_not_train_one_control(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, *REFIT, "control=true", "report=false")
    about = run / "control" / "provenance.json"
    about.write_text(about.read_text().replace('"finished": "', '"finished": null, "was": "'))
    with alone(run / "control"):
        assert "another process is at work" in message(flexgen, "resume", f"run={run}", "steps=40")


def test_a_signal_during_a_refit_at_the_start_is_heard(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = flexgen("train", *SMALL, "report=false")
    fit = Gaussian.fit

    def fitting(*args: Any, **options: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return fit(*args, **options)

    monkeypatch.setattr(Gaussian, "fit", fitting)
    words = ("prior=gaussian", "more=10", "refit.n=64", "refit.source=reversal")
    with pytest.raises(SystemExit) as stopped:
        flexgen("refit", f"run={run}", *words, run_dir="child")
    assert stopped.value.code == 130
    assert "stopped at step 30 of 40" in capsys.readouterr().err


def test_a_foreign_checkpoint_is_refused(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    checkpoint = load_checkpoint(latest_checkpoint(run))
    weight = next(k for k in checkpoint["state_dict"] if k.endswith("output.weight"))
    checkpoint["state_dict"][weight] = torch.zeros(3, 3)
    torch.save(checkpoint, latest_checkpoint(run))
    assert "does not fit the run's configuration" in message(flexgen, "evaluate", f"run={run}")


def test_no_space_loses_nothing(flexgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    written: list[int] = []

    def full(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if "step=00000020.ckpt" in name:
            written.append(descriptor)
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    told = message(flexgen, "train", *SMALL)
    assert written
    assert "No space left on device; free some disk space" in told
    assert "step=00000010.ckpt" in told
    run = Path("run")
    assert [p.name for p in find_checkpoints(run)] == ["step=00000010.ckpt"]
    assert not [p for p in (run / "checkpoints").iterdir() if p.suffix == ".part"]
    monkeypatch.setattr(os, "fsync", fsync)
    flexgen("resume", f"run={run}")
    assert latest_checkpoint(run).name == "step=00000030.ckpt"


def test_a_changed_parent_is_refused(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    child = flexgen(
        "refit",
        f"run={run}",
        "more=5",
        "prior.steps=2",
        "refit.source=reversal",
        "report=false",
        run_dir="child",
    )
    parent = latest_checkpoint(run)
    parent.write_bytes(parent.read_bytes() + b"x")
    assert "has changed since" in message(flexgen, "resume", f"run={child}", "steps=40")


def test_unreadable_run_files(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    (run / "config.yaml").write_text("{ not yaml")
    assert "is damaged" in message(flexgen, "sample", f"run={run}")
    shutil.rmtree(run / "checkpoints")
    (run / "config.yaml").unlink()
    assert "not a run directory" in message(flexgen, "sample", f"run={run}")


def test_saved_runs_refuse_keys_that_would_change_nothing(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    told = message(flexgen, "evaluate", f"run={run}", "network.generator.latent_dim=3")
    assert "unknown key" in told


def test_one_bad_cell_does_not_stop_a_sweep(
    flexgen: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    told = message(
        flexgen, "train", "-m", *SMALL, "report=false", "model.critic_steps=1,0,2",
        "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert "`critic_steps` must be a whole number of at least 1" in told
    assert "model.critic_steps=0] failed" in capsys.readouterr().err
    assert [p.parent.name for p in sorted(Path("sweep").glob("*/metrics.json"))] == ["0", "2"]


def test_a_network_without_what_the_model_asks_for(flexgen: Run) -> None:
    assert "this network has no generator" in message(flexgen, "train", "network=resconv")


def test_a_bernoulli_likelihood_wants_binary_data(flexgen: Run) -> None:
    told = message(flexgen, "train", "model=vae", "data=digits")
    assert "a Bernoulli likelihood is of data in (0.0, 1.0), got data in (-1.0, 1.0)" in told
    words = ["model=vae", "data=digits_static", "posterior=iaf", "posterior.flow.features=5"]
    assert "`flow.features` must equal `latent_dim`" in message(flexgen, "train", *words)


def test_a_discretised_likelihood_wants_as_many_levels_as_the_data_have(flexgen: Run) -> None:
    words = [
        "model=vae", "data=digits", "likelihood=discretised_logistic", "steps=1", "report=false",
        "network.encoder.hidden_features=[8]", "network.decoder.hidden_features=[8]",
        "callbacks=[progress,checkpoint]", "trainer=cpu",
    ]  # fmt: skip
    told = message(flexgen, "train", *words)
    assert "256 levels is of data that take as many values, got data of 17" in told
    assert "set likelihood.levels=17" in told
    assert not (Path("run") / "config.yaml").exists()
    flexgen("train", *words, "likelihood.levels=17")


def test_a_vae_refuses_a_refit_that_it_cannot_train_with(flexgen: Run) -> None:
    tiny = ["network.encoder.hidden_features=[8]", "network.decoder.hidden_features=[8]"]
    told = message(
        flexgen, "train", "model=vae", "data=digits_static", *tiny,
        "callbacks=[progress,reversal,refit]", "callbacks.refit.at=[1]", "steps=2",
    )  # fmt: skip
    assert "a VAE needs the density of its prior, and a Pushforward prior has none" in told
