"""A run stopped anywhere and resumed ends with the same bits as one never stopped."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flexgen.models import VAE
from flexgen.objectives import WGANGP
from flexgen.training import find_checkpoints, latest_checkpoint, load_checkpoint
from tests.conftest import REFIT, SMALL
from tests.forked import fork
from tests.training import at_call, interrupt

OPTIONS = (
    "schedule=warmup_cosine",
    "schedule.warmup=5",
    "model.accumulate=2",
    "model.gradient_clip=0.5",
    "optimizer@model.critic_optimizer=rmsprop",
)

MASKED = ("prior=masked", "prior.warmup=9", *REFIT, "callbacks.refit.source=reversal")


def same(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested structures of tensors and plain values differ."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        return [d for k in a for d in same(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        return [
            d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in same(x, y, f"{path}{i}")
        ]
    return [] if a == b else [path]


def state(run_dir: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(latest_checkpoint(run_dir))
    return {
        k: checkpoint[k] for k in ("state_dict", "optimizer_states", "lr_schedulers", "flexgen")
    }


@pytest.mark.parametrize(
    ("extra", "critic_step"),
    [((), 64), ((), 61), (REFIT, 113), (OPTIONS, 64), (MASKED, 63)],
    ids=["mid-epoch", "critic-phase", "after-refit", "options", "masked"],
)
def test_stopped_and_resumed_equals_undisturbed(
    flexgen: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    extra: tuple[str, ...],
    critic_step: int,
) -> None:
    undisturbed = flexgen("train", *SMALL, *extra, run_dir="undisturbed")
    batches = 2 if extra is OPTIONS else 1
    with monkeypatch.context() as patched:
        at_call(patched, WGANGP, "critic", batches * critic_step, interrupt)
        with pytest.raises(SystemExit) as stopped:
            flexgen("train", *SMALL, *extra, run_dir="stopped")
    assert stopped.value.code == 130
    counters = state(undisturbed.parent / "stopped")["flexgen"]["counters"]
    assert counters["critic_steps"] == critic_step
    assert counters["critic_phase"] == critic_step % 5
    flexgen("resume", f"run={undisturbed.parent / 'stopped'}")

    assert same(state(undisturbed), state(undisturbed.parent / "stopped")) == []
    metrics = [
        (undisturbed.parent / d / "metrics.csv").read_text() for d in ("undisturbed", "stopped")
    ]
    assert metrics[0] == metrics[1]


def test_a_vae_in_bfloat16_resumes_with_the_same_bits(
    flexgen: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        *SMALL, "model=vae", "likelihood=gaussian", "prior=realnvp", "trainer.precision=bf16-mixed",
        "callbacks=[progress,samples,reversal,quality,checkpoint]", "report=false",
    )  # fmt: skip
    undisturbed = flexgen("train", *words, run_dir="undisturbed")
    with monkeypatch.context() as patched:
        at_call(patched, VAE, "loss", 13, interrupt)
        with pytest.raises(SystemExit):
            flexgen("train", *words, run_dir="stopped")
    stopped = undisturbed.parent / "stopped"
    assert latest_checkpoint(stopped).name == "step=00000013.ckpt"
    flexgen("resume", f"run={stopped}")
    assert same(state(undisturbed), state(stopped)) == []


def test_more_steps_than_before(flexgen: Callable[..., Path]) -> None:
    long = flexgen("train", *SMALL, "steps=40", run_dir="long")
    short = flexgen("train", *SMALL, "steps=30", run_dir="short")
    flexgen("resume", f"run={short}", "steps=40")
    assert same(state(long), state(short)) == []


def test_measuring_does_not_change_training(flexgen: Callable[..., Path]) -> None:
    plain = flexgen("train", *SMALL, run_dir="plain")
    measured = flexgen(
        "train", *SMALL, "callbacks.reversal.every=7", "callbacks.quality.every=11",
        "callbacks.samples.every=3", run_dir="measured",
    )  # fmt: skip
    assert same(state(plain)["state_dict"], state(measured)["state_dict"]) == []


def test_saved_steps(flexgen: Callable[..., Path]) -> None:
    run = flexgen("train", *SMALL, "steps=35")
    assert [p.name for p in find_checkpoints(run)] == [
        f"step={step:08d}.ckpt" for step in (10, 20, 30, 35)
    ]
    run = flexgen("train", *SMALL, "steps=35", "callbacks.checkpoint.keep=2", run_dir="kept")
    assert [p.name for p in find_checkpoints(run)] == ["step=00000030.ckpt", "step=00000035.ckpt"]


@pytest.mark.slow
def test_killed_run_resumes_with_the_same_bits(flexgen: Callable[..., Path]) -> None:
    undisturbed = flexgen("train", *SMALL, "steps=150", run_dir="undisturbed")
    killed = undisturbed.parent / "killed"
    words = [*SMALL, "steps=150", f"paths.run_dir={killed}"]
    process = fork("train", *words)
    deadline = time.monotonic() + 120
    while not find_checkpoints(killed) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((killed / "checkpoints").glob("step=00000150.ckpt"))
    for checkpoint in find_checkpoints(killed):
        load_checkpoint(checkpoint)  # each one that is there is whole
    flexgen("resume", f"run={killed}")
    assert same(state(undisturbed), state(killed)) == []


def test_a_stopped_resume_keeps_its_overrides(
    flexgen: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = flexgen("train", *SMALL, "report=false")
    with monkeypatch.context() as patched:
        at_call(patched, WGANGP, "critic", 20, interrupt)
        with pytest.raises(SystemExit):
            flexgen("resume", f"run={run}", "steps=40")
    flexgen("resume", f"run={run}")
    assert latest_checkpoint(run).name == "step=00000040.ckpt"


def test_a_refit_that_is_dropped_equals_its_control(flexgen: Callable[..., Path]) -> None:
    run = flexgen("train", *SMALL, "report=false")
    words = ("more=7", "prior.steps=3", "refit.keep=never", "refit.source=reversal", "control=true")
    words = (*words, "callbacks.progress=null")
    child = flexgen("refit", f"run={run}", *words, run_dir="child")
    with_refit, control = (state(d)["state_dict"] for d in (child, child / "control"))
    control_keys = {k: v for k, v in with_refit.items() if k in control}
    assert same(control_keys, control) == []


def test_control_starts_from_the_same_state(flexgen: Callable[..., Path]) -> None:
    """The control of a refit is the run that never had one."""
    refitted = flexgen("train", *SMALL, *REFIT, "control=true", run_dir="refitted")
    never = flexgen("train", *SMALL, run_dir="never")
    control, plain = state(refitted / "control"), state(never)
    assert same(control["state_dict"], plain["state_dict"]) == []
    assert state(refitted)["state_dict"]["prior.stage"] == 1
