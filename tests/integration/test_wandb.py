"""What W&B is told, read back from the files of offline runs; nothing here needs the network."""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml

from flexgen.metrics_table import read_metrics
from flexgen.report.gallery import CODES, SAMPLES
from flexgen.runs.dashboard import build_workspace
from flexgen.runs.wandb_run import name_wandb
from flexgen.training import WandbLogger
from tests.conftest import REFIT, SMALL

Run = Callable[..., Path]
AXES = {"batches", "critic_steps", "generator_steps", "images_seen"}
PICTURES = "callbacks=[progress,samples,reversal,code_map,quality,checkpoint]"


@dataclass
class Offline:
    """What one `.wandb` file says."""

    folder: Path
    about: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(row["generator_steps"], row[name]) for row in self.rows if name in row]


def offline_runs(run: Path) -> list[Offline]:
    """The offline runs of a run directory, in order of time."""
    return [_read(path) for path in sorted(run.glob("wandb/offline-run-*/*.wandb"))]


def _read(path: Path) -> Offline:
    found = Offline(path.parent)
    for record in _records(path):
        match record.WhichOneof("record_type"):
            case "run":
                found.about = record.run
                found.config |= _items(record.run.config.update)
            case "config":
                found.config |= _items(record.config.update)
            case "history":
                found.rows.append(_items(record.history.item))
            case "metric":
                found.metrics[record.metric.name or record.metric.glob_name] = record.metric
            case "summary":
                found.summary |= _items(record.summary.update)
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *parents, name = item.nested_key or [item.key]
        inner = found
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = json.loads(item.value_json)
    return found


def _records(path: Path) -> Iterator[Any]:
    """LevelDB's log format after a header of 7 bytes: records in pieces, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


class AtTen(pl.Callback):
    """Asks for a stop at step 10, as Ctrl-C does, or fails there, or does nothing."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.counters.generator_steps >= 10:
            if self.what == "fail":
                raise ValueError("a callback failed")
            pl_module.stop_requested = self.what == "stop"


def test_one_run_as_wandb_and_tensorboard_see_it(flexgen: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = flexgen(
        "train", *SMALL, PICTURES, "logger=[wandb,tensorboard]", "prior=uniform",
        "callbacks.quality.every=10", "callbacks.samples.every=20", "logger.wandb.last=2",
        "report=false",
    )  # fmt: skip
    (found,) = offline_runs(run)
    columns, rows = read_metrics(run / "metrics.csv")

    # The same curves as the CSV file, at the same steps, and TensorBoard's too.
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    scalars = set(columns) - {"generator_steps"}
    assert {"pag/unit", "emd/samples", "loss/critic"} < scalars
    for name in scalars:
        wanted = [(row["generator_steps"], row[name]) for row in rows if name in row]
        logged = [(e.step, e.value) for e in board.Scalars(name)]
        if name in AXES:  # in every row, and there may be several at a step
            assert dict(found.curve(name)) == dict(wanted)
            assert dict(logged) == dict(wanted)
        else:
            assert found.curve(name) == wanted
            assert [step for step, _ in logged] == [step for step, _ in wanted]
            assert [v for _, v in logged] == pytest.approx([v for _, v in wanted], rel=1e-6)

    # Axes and summaries.
    assert found.metrics["*"].step_metric == "generator_steps"
    assert all(found.metrics[axis].options.hidden for axis in AXES)
    assert all(row.keys() >= AXES for row in found.rows)
    assert not any("global_step" in key for row in found.rows for key in row)
    emd, coverage = found.metrics["emd/samples"], found.metrics["modes/captured"]
    assert (emd.step_metric, emd.summary.min, coverage.summary.max) == (
        "generator_steps",
        True,
        True,
    )
    values = [value for _, value in found.curve("emd/samples")]
    assert len(values) == 3
    assert found.summary["emd/samples"] == {
        "min": min(values), "last": values[-1],
        "mean_of_last": pytest.approx(sum(values[-2:]) / 2),
    }  # fmt: skip

    # Configuration: classes by name, what to group by at the top.
    assert (found.config["prior"], found.config["seed"]) == ("Uniform", 0)
    assert found.config["model"]["objective"]["class"] == "WGANGP"
    assert found.config["data"]["name"] == "ring8"
    assert "_target_" not in json.dumps(found.config)

    # Pictures and tables, at the step at which they were written.
    for name, steps in (("images/samples", [20, 30]), ("images/code_map", [30])):
        pictures = [(step, found.folder / "files" / p["path"]) for step, p in found.curve(name)]
        assert [step for step, _ in pictures] == steps
        for step, path in pictures:
            assert path.read_bytes() == (run / name / f"step={step:08d}.png").read_bytes()
    ((step, table),) = found.curve("tables/metrics")
    data = json.loads((found.folder / "files" / table["path"]).read_text())["data"]
    assert step == 30
    assert {row[0]: row[3] for row in data}["emd/samples"] == values[-1]

    # Whose run it is, and how it ended.
    about = found.about
    assert (about.project, about.job_type, about.run_group) == ("flexgen", "train", "")
    assert about.display_name == f"{run.parent.name}/run"
    assert found.exit_code == 0


def test_what_was_typed_stays_in_train() -> None:
    def named(command: str, saved: str | None = None, **typed: str) -> tuple[str, str]:
        logger: dict[str, Any] = {"id": None, "job_type": None, "group": None} | typed
        config = {"logger": {"wandb": logger}, "paths": {"run_dir": "none"}}
        name_wandb(config, command, saved and {"logger": {"wandb": {"id": saved}}})
        return logger["id"], logger["job_type"]

    typed = {"id": "mine", "job_type": "abc"}
    assert named("train", **typed) == ("mine", "abc")
    assert named("train", "drawn", **typed) == ("drawn", "abc")
    assert named("control", **typed) == ("mine-control", "control")
    refit = named("refit", **typed)
    assert refit[0] != "mine"
    assert refit[1] == "refit"
    assert named("train")[1] == "train"


def test_the_id_of_an_agents_run_is_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abcd1234")
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    logger = {"id": "typed", "job_type": None, "group": None}
    config = {"logger": {"wandb": logger}, "paths": {"run_dir": "none"}}
    name_wandb(config, "train")
    assert logger["id"] == "agents"


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ({"project": "team/ring"}, "`logger.wandb.project` must have none of"),
        ({"id": "a:b"}, "`logger.wandb.id` must have none of"),
        ({"tags": ["ok", "x" * 65]}, "1 to 64 characters for `logger.wandb.tags`"),
        ({"tags": [""]}, "1 to 64 characters for `logger.wandb.tags`"),
        ({"job_type": "j" * 65}, "1 to 64 characters for `logger.wandb.job_type`"),
        ({"group": "g" * 129}, "1 to 128 characters for `logger.wandb.group`"),
        ({"name": "n" * 129}, "1 to 128 characters for `logger.wandb.name`"),
        ({"entity": "a/b"}, "`logger.wandb.entity` must have none of"),
        ({"resume": "must"}, "`logger.wandb.resume` is set already"),
    ],
)
def test_what_the_server_would_refuse_is_told_at_once(
    init: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        WandbLogger(str(tmp_path), **init)


def test_settings_from_variables_and_of_another_type_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^`logger.wandb.tags.0` cannot be 1: "):
        WandbLogger(str(tmp_path), offline=True, tags=[1]).start({}, {})
    monkeypatch.setenv("WANDB_TAGS", "ok," + "x" * 65)
    with pytest.raises(ValueError, match="1 to 64 characters for `WANDB_TAGS`"):
        WandbLogger(str(tmp_path))


def test_names_of_long_folders_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(self: Any, name: str, *args: Any, **init: Any) -> None:
        raise RuntimeError(name)

    monkeypatch.setattr(pl.loggers.WandbLogger, "__init__", tell)
    with pytest.raises(RuntimeError, match=r"^a{126}/0$"):
        WandbLogger(str(tmp_path / ("a" * 140) / "0"))


def test_a_resumed_run_goes_on_in_the_same_wandb_run(flexgen: Run) -> None:
    words = (*SMALL, "logger=wandb", "callbacks.quality.every=10", "report=false")
    stopped = f"+callbacks.stop={{_target_:{__name__}.AtTen,what:stop}}"
    with pytest.raises(SystemExit):
        flexgen("train", *words, stopped)
    run = flexgen("resume", "run=run", "~callbacks.stop", "trust=true")
    first, second = offline_runs(run)
    assert (first.exit_code, second.exit_code) == (130, 0)
    assert first.about.run_id == second.about.run_id
    curve = first.curve("emd/samples") + second.curve("emd/samples")
    assert [step for step, _ in curve] == [10, 20, 30]
    values = [value for _, value in curve]
    # The summary knows both parts.
    assert second.summary["emd/samples"]["min"] == min(values)
    assert second.summary["emd/samples"]["mean_of_last"] == pytest.approx(sum(values) / 3)


def test_wandb_can_join_a_run_that_started_without_it(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    run = flexgen("train", *SMALL, "steps=10", "report=false")
    flexgen(
        "resume",
        "run=run",
        "steps=12",
        "+logger=wandb",
        "logger.wandb.offline=true",
        "report=false",
    )
    (found,) = offline_runs(run)
    assert found.about.job_type == "train"
    assert (
        found.about.run_id
        == yaml.safe_load((run / "config.yaml").read_text())["logger"]["wandb"]["id"]
    )


def test_each_cell_of_a_sweep_is_finished_also_one_that_fails(flexgen: Run) -> None:
    at_ten = f"+callbacks.stop={{_target_:{__name__}.AtTen}}"
    words = (
        "train", "-m", *SMALL, "steps=12", at_ten, "+callbacks.stop.what=fail,nothing",
        "logger=wandb", "hydra.sweep.dir=sweeps/priors", "report=false",
    )  # fmt: skip
    with pytest.raises(SystemExit, match="a callback failed"):
        flexgen(*words)
    runs = [offline_runs(Path("sweeps/priors") / cell)[0] for cell in ("0", "1")]
    assert [run.about.run_group for run in runs] == ["priors", "priors"]
    assert [run.exit_code for run in runs] == [1, 0]
    assert runs[0].about.run_id != runs[1].about.run_id
    # Entered again, the cell that failed goes on in its W&B run.
    with pytest.raises(SystemExit, match="a callback failed"):
        flexgen(*words)
    first, again = offline_runs(Path("sweeps/priors/0"))
    assert (first.about.run_id, first.about.run_group) == (again.about.run_id, "priors")
    assert len(offline_runs(Path("sweeps/priors/1"))) == 1


def test_a_refit_and_its_control(flexgen: Run) -> None:
    run = flexgen(
        "train", *SMALL, *REFIT, "callbacks.quality.every=10", "logger=wandb", "control=true",
        "report=false",
    )  # fmt: skip
    (refit,), (control,) = offline_runs(run), offline_runs(run / "control")
    assert refit.config["prior"] == "Normal+Pushforward"
    assert control.config["prior"] == "Normal"
    assert control.about.job_type == "control"
    assert control.about.run_id == f"{refit.about.run_id}-control"
    ((_, table),) = control.curve("tables/comparison")
    data = json.loads((control.folder / "files" / table["path"]).read_text())
    assert data["columns"] == ["metric", "before", "after", "control"]
    ((_, last),) = control.curve("emd/samples")[-1:]
    assert {row[0]: row[3] for row in data["data"]}["emd/samples"] == last


def test_without_an_account_one_line_says_what_to_do(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(SystemExit, match=r"No API key configured.*WANDB_MODE=offline"):
        flexgen("train", *SMALL, "logger=wandb")


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # wandb-workspaces against pydantic 2
def test_the_dashboards_panels_are_averaged_over_seeds() -> None:
    pytest.importorskip("wandb_workspaces")
    workspace = build_workspace(
        "me", project="flexgen", name="FlexGen", sweep="priors", group_by="prior",
        axes=["generator_steps", "images_seen"],
    )  # fmt: skip
    runs = workspace.runset_settings
    assert [key.name for key in runs.groupby] == ["prior"]
    assert "'priors'" in runs.filters
    by_name = {section.name: section.panels for section in workspace.sections}
    for axis in ("generator_steps", "images_seen"):
        drawn = by_name[f"By {axis}"]
        assert [panel.y[0] for panel in drawn] == ["pag/unit", "emd/samples", "nll/samples"]
        for panel in drawn:
            assert (panel.x, panel.groupby.name) == (axis, "prior")
            assert (panel.groupby_aggfunc, panel.groupby_rangefunc) == ("mean", "stddev")
    ends = by_name["At the end: mean of the last values"]
    assert [metric.name for metric in ends[1].metrics] == ["emd/samples.mean_of_last"]
    kinds = {key for panel in by_name["Pictures"] for key in panel.media_keys}
    assert kinds == {f"images/{kind}" for kind in (*SAMPLES, *CODES)}


def test_a_dashboard_asks_for_an_account_and_its_package(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match=r"needs an account: `wandb login`"):
        flexgen("dashboard")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit, match="pip install wandb-workspaces"):
        flexgen("dashboard", "entity=me")
    with pytest.raises(SystemExit, match="did you mean `project`"):
        flexgen("dashboard", "projekt=x")
