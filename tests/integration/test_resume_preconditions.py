"""A resume applies what is typed, or refuses it; and it knows the data again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexgen.training import latest_checkpoint, load_checkpoint
from tests.conftest import REFIT, SMALL

BARE = (
    *[word for word in SMALL if not word.startswith(("callbacks.", "steps"))],
    "callbacks=[checkpoint]", "steps=10", "report=false",
)  # fmt: skip


def step_sizes(run: Path) -> list[float]:
    states = load_checkpoint(latest_checkpoint(run))["optimizer_states"]
    return [group["lr"] for state in states for group in state["param_groups"]]


def test_typed_step_sizes_are_those_that_train(flexgen: Callable[..., Path]) -> None:
    run = flexgen("train", *BARE)
    before = load_checkpoint(latest_checkpoint(run))["state_dict"]
    flexgen("resume", f"run={run}", "steps=20", "model.generator_optimizer.lr=0")
    after = load_checkpoint(latest_checkpoint(run))["state_dict"]
    assert step_sizes(run)[0] == 0
    assert step_sizes(run)[1] > 0
    same = {name: bool((before[name] == after[name]).all()) for name in before}
    assert all(still for name, still in same.items() if name.startswith("generator"))
    assert not all(still for name, still in same.items() if name.startswith("critic"))


def test_a_refit_trains_with_the_typed_step_size(flexgen: Callable[..., Path]) -> None:
    run = flexgen("train", *BARE)
    small = [word.replace("callbacks.refit", "refit") for word in REFIT[2:]]
    small = [word for word in small if "prior" not in word]
    flexgen(
        "refit", f"run={run}", "more=10", "prior=gaussian", *small,
        "model.critic_optimizer.lr=0.007", "report=false", run_dir="refit",
    )  # fmt: skip
    assert step_sizes(run.parent / "refit")[1] == 0.007


def test_a_schedule_goes_on_as_it_was(
    flexgen: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = (
        "+model.generator_scheduler._target_=torch.optim.lr_scheduler.ExponentialLR",
        "+model.generator_scheduler._partial_=true",
        "+model.generator_scheduler.gamma=0.9",
    )
    run = flexgen("train", *BARE, *[word.replace("+", "++") for word in schedule])
    words = ("resume", f"run={run}", "steps=20", "trust=true")
    with pytest.raises(SystemExit, match="schedule of the step size goes on as it was"):
        flexgen(*words, "model.generator_optimizer.lr=0.5")
    with pytest.raises(SystemExit, match=r"`model.generator_scheduler.gamma` was 0.9"):
        flexgen(*words, "model.generator_scheduler.gamma=0.5")
    flexgen(*words)
    assert step_sizes(run)[0] == pytest.approx(2e-4 * 0.9**20)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("seed=1", "`seed` was 0 when"),
        ("data.batch_size=16", "`data.batch_size` was 32 when"),
        ("data.num_validation=100", "`data.num_validation` was 200 when"),
        ("model.prior.scale=2.0", "changed by `flexgen refit`"),
        ("latent_dim=3", "type those, as `model"),
    ],
)
def test_what_cannot_change_is_refused_by_name(
    flexgen: Callable[..., Path], typed: str, told: str
) -> None:
    run = flexgen("train", *BARE)
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(SystemExit, match=told):
        flexgen("resume", f"run={run}", "steps=20", typed)
    assert (run / "config.yaml").read_bytes() == before
    flexgen("resume", f"run={run}", "steps=20")


def test_an_edited_configuration_is_known(flexgen: Callable[..., Path]) -> None:
    run = flexgen("train", *BARE)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0", "seed: 5"))
    with pytest.raises(SystemExit, match="`seed` was 0 when"):
        flexgen("resume", f"run={run}", "steps=20")


def test_what_may_change_is_told_and_noted(
    flexgen: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = flexgen("train", *BARE)
    flexgen("resume", f"run={run}", "steps=20", "model.accumulate=2")
    told = "`model.accumulate` was 1 when the checkpoint was saved, and is 2 now"
    assert told in capsys.readouterr().err
    (resumed,) = json.loads((run / "provenance.json").read_text())["resumed"]
    assert resumed["changed"] == [told]
    assert resumed["checkpoint"] == "step=00000010.ckpt"


def test_another_version_is_told(
    flexgen: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = flexgen("train", *BARE)
    from flexgen.runs import folder

    monkeypatch.setattr(folder, "version", lambda package: "99.0")
    folder.versions.cache_clear()
    flexgen("resume", f"run={run}", "steps=20")
    folder.versions.cache_clear()
    assert "`version of torch` was" in capsys.readouterr().err


PICTURES = ("data=folder", "data.root=pictures", "data.shape=[1,8,8]", "data.batch_size=8")


def draw(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for i in numbers:
        x = np.random.default_rng(i).integers(0, 255, (8, 8)).astype(np.uint8)
        Image.fromarray(x).save(folder / f"{i:04d}.png")


@pytest.mark.parametrize("change", ["added", "missing", "replaced"])
def test_changed_pictures_are_refused(
    flexgen: Callable[..., Path], tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "pictures"
    draw(folder, range(60))
    small = [word for word in BARE if not word.startswith("data")]
    run = flexgen("train", *small, *PICTURES)
    if change == "added":
        draw(folder, range(60, 70))
    elif change == "missing":
        (folder / "0000.png").unlink()
    else:
        for i in range(60):
            (folder / f"{i:04d}.png").unlink()
        draw(folder, range(60, 120))
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / f"{number:04d}.png")
    with pytest.raises(SystemExit, match=r"have changed since|are not those"):
        flexgen("resume", f"run={run}", "steps=20", "trust=true")


def test_a_refit_refuses_changed_pictures_too(flexgen: Callable[..., Path], tmp_path: Path) -> None:
    draw(tmp_path / "pictures", range(60))
    small = [word for word in BARE if not word.startswith("data")]
    run = flexgen("train", *small, *PICTURES)
    draw(tmp_path / "pictures", range(60, 70))
    with pytest.raises(SystemExit, match="have changed since it was trained"):
        flexgen("refit", f"run={run}", "trust=true", "prior=gaussian", "report=false", run_dir="b")
