"""Every command, as a user types it, on a small run."""

import contextlib
import functools
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexgen.metrics_table import read_metrics
from flexgen.priors import maximise_likelihood
from flexgen.training import latest_checkpoint, load_checkpoint
from tests.conftest import REFIT, SMALL
from tests.forked import fork

Run = Callable[..., Path]
DIGITS = (
    "network=mlp",
    "callbacks=[progress,samples,reversal,code_map,disagreement,spectrum,quality,refit,checkpoint]",
    "network.generator.hidden_features=[16]",
    "network.critic.hidden_features=[16]",
    "callbacks.reversal.options.steps=5",
    "callbacks.reversal.num_resamples=40",
    "callbacks.reversal.at=[10]",
    "callbacks.quality.at=[10]",
    "callbacks.quality.n=60",
    "callbacks.quality.classifier=true",
    "callbacks.refit.at=[10]",
    "callbacks.refit.n=200",
    "callbacks.refit.n_held_out=60",
    "callbacks.refit.prior.steps=3",
    "callbacks.refit.keep=always",
    "callbacks.code_map.perplexity=5",
    "trainer=cpu",
    "steps=20",
    "control=true",
)


def test_the_main_job_on_digits(flexgen: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = flexgen("train", *DIGITS)
    out = capsys.readouterr().out
    for word in ("before", "after", "control", "EMD", "PAG", str(run / "report.html")):
        assert word in out
    for kind in ("samples", "code_map", "disagreement", "spectrum", "reconstructions"):
        assert (run / "images" / kind / "step=00000020.png").is_file()
    codes = load_file(run / "codes" / "step=00000020.safetensors")
    assert codes["z"].shape == (180, 20)
    assert codes["label"].shape == codes["loss"].shape == (180,)
    final = json.loads((run / "metrics.json").read_text())
    assert final["counters"] == {
        "batches": 100, "critic_steps": 100, "generator_steps": 20, "images_seen": 10_000,
    }  # fmt: skip
    wanted = {
        "pag/unit", "pag/unit_low", "pag/unit_high", "pag/literal", "own/pag_reversed", "fid",
        "kid", "inception", "classes/total_variation", "emd/samples", "emd/floor",
        "codes/cluster_ratio", "prior/stage", "refit/kept", "refit/condition",
        "reversal/error", "disagreement/distance",
    }  # fmt: skip
    assert wanted <= final["values"].keys()
    assert final["values"]["prior/stage"] == 1
    control = json.loads((run / "control" / "metrics.json").read_text())
    assert control["counters"] == final["counters"]
    assert control["values"]["prior/stage"] == 0


def test_a_sweep_and_its_table(flexgen: Run, capsys: pytest.CaptureFixture[str]) -> None:
    small = [word for word in SMALL if not word.startswith("data=")]
    flexgen(
        "train", "-m", "model=gan,lsgan,wgan,wgan_gp", "data=ring8", "seed=0,1",
        *(word for word in small if "reversal" not in word and "samples" not in word),
        "callbacks=[quality,checkpoint]", "report=false", "hydra.sweep.dir=sweep", "steps=10",
    )  # fmt: skip
    capsys.readouterr()
    flexgen("table", "sweep", "metrics=[emd/samples]")
    out = capsys.readouterr().out
    for model in ("gan", "lsgan", "wgan", "wgan_gp"):
        assert sum(line.split()[:1] == [model] for line in out.splitlines()) == 1
    rows = (Path("sweep") / "table.csv").read_text().splitlines()
    assert len({line.split(",")[0] for line in rows[1:]}) == 4


def test_commands_on_a_saved_run(flexgen: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = flexgen("train", *SMALL)
    final = json.loads((run / "metrics.json").read_text())["values"]
    moved = run.rename(run.parent / "moved elsewhere")

    flexgen("evaluate", f"run={moved}")
    again = json.loads((moved / "evaluation.json").read_text())["values"]
    assert {k: again[k] for k in ("pag/unit", "emd/samples")} == {
        k: final[k] for k in ("pag/unit", "emd/samples")
    }

    flexgen("reverse", f"run={moved}", "n=50", "reverse.options.steps=4")
    assert load_file(moved / "codes" / "step=00000030.safetensors")["z"].shape == (50, 2)

    capsys.readouterr()
    flexgen("sample", f"run={moved}", "n=9")
    tensors = capsys.readouterr().out.splitlines()[0].removeprefix("tensors: ")
    x = load_file(tensors)["x"]
    assert x.shape == (9, 2)
    flexgen("sample", f"run={moved}", "n=9", "sample_seed=1")
    other = load_file(capsys.readouterr().out.splitlines()[0].removeprefix("tensors: "))["x"]
    assert not torch.equal(x, other)

    flexgen("report", str(moved))
    assert "<html" in (moved / "report.html").read_text()


def test_refit_starts_a_run_from_another(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    few = (
        "refit.n=100", "refit.n_held_out=64", "refit.sigma=0.2",
        "refit.posterior={num_temperatures: 3}",
    )  # fmt: skip
    words = ("more=10", "prior.steps=3", "refit.keep=always", *few, "control=true")
    child = flexgen("refit", f"run={run}", *words, run_dir="child")
    about = json.loads((child / "provenance.json").read_text())
    assert about["parent"]["checkpoint"] == str(latest_checkpoint(run))
    final = json.loads((child / "metrics.json").read_text())
    assert final["counters"]["generator_steps"] == 40
    assert final["values"]["prior/stage"] == 1
    steps = [row["generator_steps"] for row in read_metrics(child / "metrics.csv").rows]
    assert steps == sorted(steps)
    assert steps[0] < 30 < steps[-1]
    assert (child / "control" / "metrics.json").is_file()
    # A refit of a refit: one stage more, the first one's weights kept.
    third = flexgen("refit", f"run={child}", "more=5", *words[1:-1], run_dir="third")
    stages = load_checkpoint(latest_checkpoint(third))["state_dict"]
    fitted = load_checkpoint(latest_checkpoint(child))["state_dict"]
    assert int(stages["prior.stage"]) == 2
    assert torch.equal(stages["prior.stages.1.factor"], fitted["prior.stages.1.factor"])
    flexgen("sample", f"run={third}", "n=4")


@pytest.mark.slow
def test_refit_with_a_flow(flexgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zuko")
    short = functools.partial(maximise_likelihood, steps=20)
    monkeypatch.setattr("flexgen.priors.staged.maximise_likelihood", short)
    run = flexgen("train", *SMALL, "report=false")
    words = (
        "more=5", "report=false", "refit.n=100", "refit.n_held_out=64", "refit.sigma=0.2",
        "refit.posterior={num_temperatures: 3}",
    )  # fmt: skip
    flow = ("prior=zuko_nsf", "prior.transforms=1", "prior.hidden_features=[8]")
    child = flexgen("refit", f"run={run}", *flow, *words, run_dir="child")
    assert "refit/nll" in json.loads((child / "metrics.json").read_text())["values"]


def test_nothing_to_log_is_no_reason_to_fail(flexgen: Run) -> None:
    words = ("callbacks=[checkpoint]", "steps=3", "report=false")
    short = [w for w in SMALL if "callbacks" not in w]
    run = flexgen("train", *short, *words)
    assert "loss/critic" in json.loads((run / "metrics.json").read_text())["values"]


def test_codes_stay_in_a_bounded_priors_support(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, *REFIT, "prior=uniform", "callbacks.reversal.at=[15]")
    before = load_file(run / "codes" / "step=00000015.safetensors")
    assert before["z"].abs().max() <= 1
    assert before["index"].unique().shape == (64,)


def test_several_rounds_of_refit(flexgen: Run) -> None:
    words = ("callbacks.refit.at=[10,20]", "callbacks.refit.source=reversal", "report=false")
    run = flexgen("train", *SMALL, *REFIT, *words)
    assert json.loads((run / "metrics.json").read_text())["values"]["prior/stage"] == 2
    weights = load_checkpoint(latest_checkpoint(run))["state_dict"]

    # Another prior from the same point as a round of the run, which leaves out that and later ones.
    gaussian = (
        "prior=gaussian", "refit.keep=always", "refit.source=reversal", "more=5", "report=false",
    )  # fmt: skip
    for step, stage in ((10, 1), (20, 2)):
        start = f"checkpoint=before_refit_step={step:08d}.ckpt"
        child = flexgen("refit", f"run={run}", start, *gaussian, run_dir=f"from_{step}")
        final = json.loads((child / "metrics.json").read_text())
        assert final["counters"]["generator_steps"] == step + 5
        assert final["values"]["prior/stage"] == stage
        found = load_checkpoint(latest_checkpoint(child))["state_dict"]
        assert f"prior.stages.{stage}.loc" in found
        assert not any(name.startswith(f"prior.stages.{stage + 1}.") for name in found)
        flexgen("sample", f"run={child}", "n=4")
    assert torch.equal(found["prior.stages.1.factor"], weights["prior.stages.1.factor"])
    # The rounds that it kept are known to the next.
    third = flexgen("refit", f"run={child}", *gaussian, run_dir="third")
    found = load_checkpoint(latest_checkpoint(third))["state_dict"]
    assert int(found["prior.stage"]) == 3
    assert torch.equal(found["prior.stages.1.factor"], weights["prior.stages.1.factor"])


def test_a_second_refit_at_the_same_step_is_refused(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, *REFIT, "callbacks.refit.at=[30]", "report=false")
    with pytest.raises(SystemExit, match=r"at step 30 already.*before_refit_step=00000030"):
        flexgen("refit", f"run={run}", "more=5", "report=false", run_dir="child")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flexgen ref", {"refit"}),
        ("flexgen train prior=nor", {"prior=normal"}),
        ("flexgen train model.critic_st", {"model.critic_steps="}),
        ("flexgen refit prior=pe", {"prior=per_class"}),
        ("flexgen table la", {"last="}),
        ("flexgen table multirun/a comparison=", {"comparison=true", "comparison=false"}),
        ("flexgen table metrics=fid", {"metrics=fid", "metrics=fid/inception"}),
        ("flexgen reverse run=there reverse.options.me", {"reverse.options.method="}),
        ("flexgen reverse reverse.space=", {"reverse.space=base", "reverse.space=code"}),
        ("flexgen reverse generator=g.pt reverse.loss=", {"reverse.loss=mse", "reverse.loss=bce"}),
        ("flexgen search pruner=m", {"pruner=median"}),
        ("flexgen compare priors=mask", {"priors=masked"}),
        ("flexgen train schedule=warmup_", {"schedule=warmup_cosine", "schedule=warmup_linear"}),
    ],
)
def test_tab_completion(
    flexgen: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    expected: set[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    flexgen("-sc", "query=bash")
    assert set(capsys.readouterr().out.split()) == expected
    monkeypatch.delenv("COMP_LINE")
    flexgen("-sc", "install=bash")
    assert "hydra_bash_completion flexgen" in capsys.readouterr().out


def test_every_command_has_help(flexgen: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from flexgen.cli import COMMANDS, main

    main(["--help"])
    overview = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in overview
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
        assert f"flexgen {command}" in capsys.readouterr().out


def test_sigterm_saves_and_resume_goes_on(flexgen: Run, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    words = [*SMALL, "steps=100000", f"paths.run_dir={run}"]
    process = fork("train", *words)
    while not (run / "checkpoints").is_dir() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"flexgen resume run={run}" in err
    step = load_checkpoint(latest_checkpoint(run))["flexgen"]["counters"]["generator_steps"]
    flexgen("resume", f"run={run}", f"steps={step + 5}", "report=false")
