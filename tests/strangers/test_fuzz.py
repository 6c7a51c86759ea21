"""Damaged and hostile files end in one clear line: none crashes, hangs or fills memory.

`FLEXGEN_FUZZ=2000 pytest --timeout=1800 tests/strangers/test_fuzz.py` tries that many cases in all,
the cheap kinds more often than those that build a run.
"""

import copy
import os
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flexgen.codes import load_codes
from flexgen.data.readers import ArrayFile, ImageFolder, Reader
from flexgen.report import write_report
from flexgen.reversal.loading import load_generator
from flexgen.runs.build import build_trainer
from flexgen.runs.errors import error_line
from flexgen.runs.run import Run
from flexgen.runs.saved_config import load_config
from flexgen.runs.train import resume
from flexgen.runs.trust import rebuilding
from flexgen.training import latest_checkpoint
from tests.conftest import SMALL

CASES = int(os.environ.get("FLEXGEN_FUZZ", "100"))
_MEMORY = 4 * 2**30  # that a case may take on top; a value of a billion must not be tried out


def fuzz(percent: int) -> settings:
    """Settings of a test that takes so much of all cases."""
    return settings(
        max_examples=max(1, CASES * percent // 100), deadline=None, database=None,
        derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip


VALUES = st.sampled_from(
    [None, True, -1, 0, 3, 2**31, 2**62, 10**30, 1e308, float("nan"), float("inf"), "", "x", "a/b",
     "/", "..", "\0", "\ud800", "a" * 5000, [], {}, [1, [2, "x"]], {"a": {"b": 1}}, [[[[[]]]]],
     {"_target_": "os.system"}, {"_target_": "torch.nn.Linear"}, "${oc.env:HOME}"]
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flexgen.cli import main

    run = tmp_path_factory.mktemp("fuzz") / "run"
    main(["train", *SMALL, "steps=10", "report=false", f"paths.run_dir={run}"])
    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 3)).astype(np.uint8)
    for ending in ("png", "jpg", "bmp", "gif", "tif", "webp", "ppm"):
        Image.fromarray(pixels).save(folder / f"a.{ending}")
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    x = np.random.default_rng(0).random((5, 8, 8), np.float32)
    np.save(folder / "a.npy", x)
    np.savez(folder / "a.npz", x=x)
    np.savez_compressed(folder / "b.npz", x=x, y=x[:1])
    save_file({"x": torch.from_numpy(x)}, folder / "a.safetensors")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "g.safetensors"
    save_file(nn.Linear(4, 9).state_dict(), path)
    return path


def everything(reader: Reader) -> None:
    reader.check()
    reader.read(torch.arange(len(reader)))


@contextmanager
def changed(path: Path) -> Iterator[Path]:
    """A file that may be overwritten, and is as it was afterwards."""
    whole = path.with_name("whole")
    shutil.copy(path, whole)
    try:
        yield path
    finally:
        shutil.move(whole, path)


def survives(work: Callable[[], Any]) -> None:
    """Do it, or be told in one line why not."""
    page = os.sysconf("SC_PAGE_SIZE")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * page
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except Exception as error:
        told = error_line(error)
        assert told
        assert "\n" not in told
        assert "FLEXGEN_DEBUG" not in told, told  # what nobody has foreseen
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def use(run: Path) -> None:
    """What the commands on a run do with its files, training left out."""
    config = load_config(run)
    _ = Run(config).model
    with rebuilding(run):
        build_trainer(config, [])


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that a plain value holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in items:
        found.append((*path, key))
        if isinstance(item, dict | list):
            found += spots(item, (*path, key))
    return found


def mutate(value: Any, data: st.DataObject) -> Any:
    """A copy with one to three of its parts dropped, swapped, wrapped or named anew."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        if not (parts := spots(value)):
            return value
        *above, last = data.draw(st.sampled_from(parts))
        node = value
        for key in above:
            node = node[key]
        how = data.draw(st.sampled_from(["drop", "swap", "wrap", "rename"]))
        part = node.pop(last)
        if how == "rename" and isinstance(node, dict):
            last = data.draw(st.sampled_from(["", "x", "_args_", "_target_", "_partial_", "7"]))
        elif how == "wrap":
            part = [part]
        elif how != "drop":
            part = data.draw(VALUES)
        if how != "drop":
            node.insert(last, part) if isinstance(node, list) else node.update({last: part})
    return value


def damage(content: bytes, data: st.DataObject) -> bytes:
    """Bits flipped, and perhaps a piece cut out, zeroed or doubled, or the end cut off."""
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    start = data.draw(st.integers(0, len(damaged)))
    end = data.draw(st.integers(start, min(len(damaged), start + 2000)))
    how = data.draw(st.sampled_from(["leave", "cut", "zero", "double", "end"]))
    piece = {"cut": b"", "zero": bytes(end - start), "double": damaged[start:end] * 2}.get(how)
    if how == "end":
        return bytes(damaged[:start])
    return bytes(damaged if piece is None else damaged[:start] + piece + damaged[end:])


@fuzz(10)
@given(data=st.data())
def test_configurations_with_other_values(run: Path, data: st.DataObject) -> None:
    with changed(run / "config.yaml") as path:
        config = mutate(yaml.safe_load(path.read_text()), data)
        path.write_text(yaml.dump(config))
        survives(lambda: use(run))


@fuzz(10)
@given(data=st.data())
def test_configurations_with_damaged_text(run: Path, data: st.DataObject) -> None:
    with changed(run / "config.yaml") as path:
        path.write_bytes(damage(path.read_bytes(), data))
        survives(lambda: use(run))


@fuzz(10)
@given(data=st.data())
def test_checkpoints_with_damaged_bytes(run: Path, data: st.DataObject) -> None:
    config = load_config(run)
    with changed(latest_checkpoint(run)) as path:
        path.write_bytes(damage(path.read_bytes(), data))
        survives(lambda: Run(config).model)


@fuzz(10)
@given(data=st.data())
def test_checkpoints_with_other_values(run: Path, data: st.DataObject) -> None:
    config = load_config(run)
    with changed(latest_checkpoint(run)) as path:
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["state_dict"] = dict(checkpoint["state_dict"])
        # One part at a time: there are a hundred times more of the generators' states.
        part = data.draw(st.sampled_from(["flexgen", "state_dict", "callbacks"]))
        checkpoint[part] = mutate(checkpoint[part], data) if checkpoint[part] else 3
        torch.save(checkpoint, path)
        survives(lambda: Run(config).model)


@fuzz(5)
@given(data=st.data())
def test_resumed_from_a_checkpoint_with_other_values(run: Path, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        shutil.copytree(run, copied := Path(folder) / "run")
        path = latest_checkpoint(copied)
        checkpoint = torch.load(path, weights_only=True)
        part = data.draw(st.sampled_from(["flexgen", "optimizer_states", "loops", "callbacks"]))
        checkpoint[part] = mutate(checkpoint[part], data)
        torch.save(checkpoint, path)
        survives(lambda: resume({**load_config(copied), "steps": 11}))


@fuzz(10)
@given(data=st.data())
def test_damaged_codes(run: Path, data: st.DataObject) -> None:
    (codes,) = (run / "codes").iterdir()
    with changed(codes) as path:
        path.write_bytes(damage(path.read_bytes(), data))
        survives(lambda: load_codes(path))
        survives(lambda: write_report(run))


@fuzz(10)
@given(data=st.data())
def test_damaged_tables_and_provenance(run: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["metrics.csv", "metrics.json", "provenance.json"]))
    with changed(run / name) as path:
        path.write_bytes(damage(path.read_bytes(), data))
        survives(lambda: load_config(run))
        survives(lambda: write_report(run))


@fuzz(15)
@given(data=st.data())
def test_damaged_pictures(pictures: Path, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(sorted(pictures.iterdir())))
    with changed(source) as path:
        path.write_bytes(damage(path.read_bytes(), data))
        survives(lambda: everything(ImageFolder(pictures, (1, 8, 8), (-1, 1))))


@fuzz(10)
@given(data=st.data())
def test_damaged_arrays(arrays: Path, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(sorted(arrays.iterdir())))
    with changed(source) as path:
        path.write_bytes(damage(path.read_bytes(), data))
        survives(lambda: everything(ArrayFile(path, (1, 8, 8), (-1, 1), key="x")))


@fuzz(10)
@given(data=st.data())
def test_damaged_generators(weights: Path, data: st.DataObject) -> None:
    with changed(weights) as path:
        path.write_bytes(damage(path.read_bytes(), data))
        survives(lambda: load_generator(path, network=nn.Linear(4, 9)))
