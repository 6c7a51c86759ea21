"""A run from a stranger cannot run code here, nor read or write outside its folder."""

import json
import os
import shutil
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flexgen import __version__
from flexgen.report import write_reports, write_table
from flexgen.report.table import table
from flexgen.runs.saved_config import load_config
from flexgen.runs.trust import confine
from flexgen.training import latest_checkpoint, load_checkpoint
from tests.conftest import CONF, SMALL

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seconds; each test has a copy."""
    from flexgen.cli import main

    run = tmp_path_factory.mktemp("strangers") / "run"
    words = ["callbacks=[progress,samples,reversal,quality,checkpoint]", "steps=10"]
    main(["train", *SMALL, *words, "report=false", f"paths.run_dir={run}"])
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """The run where it never was before, as one from elsewhere is."""
    return Path(shutil.copytree(saved, tmp_path / "stranger"))


def edit(run: Path, key: str, value: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    *above, last = key.split(".")
    node = config
    for part in above:
        node = node.setdefault(part, {})
    node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def refusal(flexgen: Run, command: str, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        flexgen(command, *words)
    told = stopped.value.code
    assert isinstance(told, str)
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "functools.partial",
        "torch.load",
        "torch.hub.load",
        "torch.nn.modules.module.torch.os.system",  # through an allowed module to another
        "torch.optim.adam.torch.load",
        "pytorch_lightning.loggers.wandb.os.system",
        "torch.nn.utils.clip_grad_norm_",  # a function
        "flexgen.models.Adversarial.load_from_checkpoint",  # a method
        "flexgen.data.datasets.Path",  # a class from elsewhere
        "flexgen.analysis.workers.shards",  # it starts processes
        "flexgen.report.write_report",
        "pytorch_lightning.callbacks.ModelCheckpoint",  # it writes where it likes
        "pytorch_lightning.cli.LightningCLI",
        "pytorch_lightning.Trainer.fit",
        "flexgen",
        "..os.system",
        3,
    ],
)
@pytest.mark.parametrize("key", ["model.generator._target_", "callbacks.samples.a.b._target_"])
def test_only_known_classes_are_built(run: Path, key: str, target: object) -> None:
    edit(run, key, target)
    with pytest.raises(ValueError, match="may not use; if you trust it, say trust=true") as told:
        load_config(run)
    assert str(target) in str(told.value)
    load_config(run, trust=True)


@pytest.mark.parametrize(
    "value",
    [
        [{"a": [{"_target_": "os.system", "_partial_": True}]}],
        {"_target_": "torch.nn.Linear", "in_features": 2, "bias": {"_target_": "os.getcwd"}},
        {"_target_": "torch.nn.Linear", "_args_": [2, 2]},
        {"_target_": "pytorch_lightning.loggers.WandbLogger", "settings": {"base_url": "http://x"}},
        {"_target_": "pytorch_lightning.loggers.TensorBoardLogger", "version": "/tmp/elsewhere"},
        {"_target_": "pytorch_lightning.loggers.TensorBoardLogger", "name": "../../elsewhere"},
    ],
)
def test_at_any_depth_and_with_any_arguments(run: Path, value: object) -> None:
    edit(run, "logger.more", {"_target_": "flexgen.training.CSVLogger", "x": value})
    with pytest.raises(ValueError, match="may not use; if you trust it, say trust=true"):
        load_config(run)


def test_all_that_our_own_yaml_builds_is_allowed(tmp_path: Path) -> None:
    pytest.importorskip("zuko")
    found = 0
    for path in CONF.rglob("*.yaml"):
        parts = yaml.safe_load(path.read_text()) or {}
        for name in ("hydra", "defaults"):  # no parts of a run
            parts.pop(name, None)
        confine({"paths": {}, "data": {}, "logger": {}, "trainer": {}, "parts": parts}, tmp_path)
        found += path.read_text().count("_target_:")
    assert found > 50


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.generator.activation", "${oc.env:HOME}", "write the value itself"),
        ("callbacks.samples.n", "${oc.decode:'1'}", "write the value itself"),
        ("hydra", {"job_logging": {"handlers": {}}}, "it sets `hydra`"),
        ("defaults", ["/data: ring8"], "it sets `defaults`"),
        ("threads", 10**6, "`threads` must be from 1"),
        ("steps", "many", "`steps` must be there"),
    ],
)
def test_saved_values_are_plain(run: Path, key: str, value: object, told: str) -> None:
    edit(run, key, value)
    for trust in (False, True):
        with pytest.raises(ValueError, match=told):
            load_config(run, trust)


def test_an_alias_bomb_takes_neither_memory_nor_time(run: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
    )
    for text in (bomb, "a: &a [*a]\n", "a: " + "[" * 300):
        shutil.copy(run / "config.yaml", run / "whole")
        with (run / "config.yaml").open("a") as file:
            file.write(text)
        tracemalloc.start()
        with pytest.raises(ValueError, match="is damaged"):
            load_config(run, trust=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50e6
        shutil.move(run / "whole", run / "config.yaml")


def test_a_class_of_ones_own_wants_trust(
    run: Path, flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = Path("it ran").resolve()
    Path("their_code.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "from flexgen.callbacks import SampleGrid as Grid\n"
    )
    edit(run, "callbacks.samples._target_", "their_code.Grid")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for command in ("evaluate", "sample", "reverse", "refit", "resume", "compare"):
        told = refusal(flexgen, command, f"run={run}")
        assert "'their_code.Grid'" in told
    assert not mark.exists()
    assert os.getcwd() not in sys.path
    assert "true or false" in refusal(flexgen, "sample", f"run={run}", "trust=maybe")
    flexgen("sample", f"run={run}", "n=2", "trust=true")
    assert mark.exists()


def test_what_is_typed_is_free(run: Path, flexgen: Run) -> None:
    Path("my_code.py").write_text("from flexgen.callbacks import SampleGrid as Grid\n")
    flexgen("sample", f"run={run}", "n=2", "callbacks.samples._target_=my_code.Grid")


def test_a_run_writes_in_its_folder_whatever_it_says(
    run: Path, flexgen: Run, tmp_path: Path
) -> None:
    out = tmp_path / "outside"
    for key in ("trainer.default_root_dir", "logger.csv.save_dir", "callbacks.quality.cache_dir",
                "paths.cache_dir"):  # fmt: skip
        edit(run, key, str(out))
    before = latest_checkpoint(run).name
    cwd = set(Path().rglob("*"))
    flexgen("resume", f"run={run}", "steps=15", "report=false")
    assert not out.exists()
    assert latest_checkpoint(run).name > before
    assert (run / "metrics.csv").read_text().count("\n") > 2
    assert {p for p in Path().rglob("*") if run.name not in p.parts} <= cwd


def test_nothing_is_downloaded_unasked(run: Path) -> None:
    edit(run, "data.download", True)
    assert load_config(run)["data"]["download"] is False
    assert load_config(run, trust=True)["data"]["download"] is True


def test_links_out_of_the_folder_are_refused(run: Path, flexgen: Run, tmp_path: Path) -> None:
    out = tmp_path / "outside"
    out.mkdir()
    (run / "samples").symlink_to(out)
    for command in ("evaluate", "sample", "reverse", "refit", "resume", "compare"):
        assert f"{run}/samples is a link, to" in refusal(flexgen, command, f"run={run}")
    assert list(out.iterdir()) == []
    flexgen("sample", f"run={run}", "n=2", "trust=true")
    assert list(out.iterdir())
    (run / "samples").unlink()
    os.mkfifo(run / "images" / "samples" / "step=00000099.png")
    assert "neither a file nor a folder" in refusal(flexgen, "sample", f"run={run}")


def test_a_file_that_goes_while_the_folder_is_looked_through_is_no_fault(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def later(folder: Path, **how: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for where, folders, files in walk(folder, **how):
            yield where, folders, [*files, ".metrics.csv.1.part"]  # renamed by another process

    monkeypatch.setattr(os, "walk", later)
    load_config(run)


def test_w_and_bs_own_links_are_allowed_and_its_settings_are_not(run: Path) -> None:
    for folder in (run, run / "control"):
        logs = folder / "wandb" / "offline-run-1" / "logs"
        logs.mkdir(parents=True)
        (logs / "debug-core.log").symlink_to("/elsewhere/core-debug.log")
    load_config(run)
    for folder in ("wandb", ".wandb", "samples/wandb"):
        settings = run / folder / "settings"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text("[default]\nbase_url = http://127.0.0.1:9\n")
        with pytest.raises(ValueError, match="would set up W&B"):
            load_config(run)
        load_config(run, trust=True)
        settings.unlink()


def test_reports_and_tables_do_not_follow_links(run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "config.yaml").write_text("password: hunter2\n")
    (secret / "step=00000001.png").write_bytes(b"\x89PNG\r\n\x1a\n hunter2 IEND")
    for name in ("leaked", "control"):
        (run / "images" / name if name == "leaked" else run / name).symlink_to(secret)
    runs = tmp_path / "runs"
    shutil.move(run, runs / "run")
    for name in ("table.csv", "table.txt", "report.html"):
        (runs / name).symlink_to(secret / name)
    pages = write_reports(runs)
    write_table([runs])
    assert "hunter2" not in "".join(page.read_text() for page in pages)
    assert "left out" in pages[1].read_text()
    assert sorted(p.name for p in secret.iterdir()) == ["config.yaml", "step=00000001.png"]
    (runs / "run" / "config.yaml").unlink()
    (runs / "run" / "config.yaml").symlink_to(secret / "config.yaml")
    with pytest.raises(ValueError, match="is a link; put"):
        write_reports(runs / "run")


def test_a_run_that_is_its_own_parent_ends(run: Path) -> None:
    about = json.loads((run / "provenance.json").read_text())
    about |= {"command": "refit", "parent": {"run": str(run), "checkpoint": "x.ckpt", "sha256": ""}}
    (run / "provenance.json").write_text(json.dumps(about))
    assert table([run]).rows


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def test_a_checkpoint_holds_tensors_only(run: Path, flexgen: Run, tmp_path: Path) -> None:
    mark, path = tmp_path / "it ran", latest_checkpoint(run)
    checkpoint = load_checkpoint(path)
    torch.save(checkpoint | {"evil": Evil(mark)}, path)
    for command in ("evaluate", "sample", "refit", "resume"):
        words = [f"run={run}", "trust=true", *(["steps=20"] if command == "resume" else [])]
        assert "damaged or not FlexGen's" in refusal(flexgen, command, *words)
    assert not mark.exists()
    weights = checkpoint["state_dict"]
    name = next(iter(weights))
    for bad, told in (
        ({"state_dict": weights | {name: torch.zeros(1).expand(10**12)}}, "larger than the file"),
        ({"state_dict": weights | {name: torch.zeros(2, device="meta")}}, "larger than the file"),
        ({"flexgen": {"counters": {"batches": "1"}}}, "holds no step counters"),
        ({"state_dict": [1, 2]}, "holds no weights"),
        ({"callbacks": {"a": 3}}, "holds no states of callbacks"),
    ):
        torch.save(checkpoint | bad, path)
        with pytest.raises(ValueError, match=told):
            load_checkpoint(path)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="cut short, damaged"):
        load_checkpoint(path)


def test_provenance_is_checked(run: Path, flexgen: Run) -> None:
    path = run / "provenance.json"
    about = json.loads(path.read_text())
    for bad in (
        "[" * 100_000,
        "{}",
        json.dumps(about | {"parent": {"checkpoint": "/etc/passwd", "sha256": ""}}),
        json.dumps(about | {"parent": 3}),
    ):
        path.write_text(bad)
        assert f"{path} is damaged" in refusal(flexgen, "sample", f"run={run}")


@pytest.mark.parametrize("command", ["sample", "resume", "evaluate"])
def test_a_run_of_the_version_before_is_refused_in_one_line(
    command: str, run: Path, flexgen: Run
) -> None:
    path = run / "provenance.json"
    about = json.loads(path.read_text())
    assert about["versions"]["flexgen"] == __version__ != "0.1.0"
    path.write_text(json.dumps(about | {"versions": {"flexgen": "0.1.0"}}))
    told = refusal(flexgen, command, f"run={run}", "trust=true")
    assert "made by flexgen 0.1.0" in told
    assert "train again, or use flexgen 0.1.0" in told


def test_names_lead_nowhere(run: Path, tmp_path: Path) -> None:
    hostile = "javascript:alert(1)\"'<img src=x onerror=alert(2)>&#x27;"
    edit(run, "name", hostile)
    about = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(about | {"overrides": [f"model={hostile}"]}))
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "javascript:alert(1)")
    shutil.copytree(run, runs / "\" onclick='alert(1)' x=\"")
    for page in write_reports(runs):
        text = page.read_text()
        body = text.split('<script type="application/json"')[0]
        assert 'href="javascript:' not in text
        assert "<img src=x" not in text
        assert "onclick=" not in body.replace("onclick=&#39;", "").replace("%20onclick%3D", "")
    index = (runs / "report.html").read_text()
    assert 'href="javascript%3Aalert%281%29/report.html"' in index
