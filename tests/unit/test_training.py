"""The training core: counters, schedules, averages, generators' states, files."""

import io
import math
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flexgen.files import write_atomically
from flexgen.metrics_table import COUNTERS, read_metrics
from flexgen.training import (
    EMA,
    Counters,
    CSVLogger,
    Schedule,
    find_checkpoints,
    isolated_rng,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    seed_of_rank,
)
from tests.archives import archive


def test_counters_round_trip() -> None:
    counters = Counters(batches=7, critic_steps=7, generator_steps=2, images_seen=70)
    other = Counters()
    other.load_state_dict(counters.state_dict())
    assert other == counters
    assert "critic_phase" not in counters.axes()


def test_schedule_names_every_due_step_once() -> None:
    schedule = Schedule()
    schedule.register(every=10)
    schedule.register(every=7, at=[12, 20])
    schedule.end = 30
    step, due = 0, []
    while (step := schedule.next_after(step)) < math.inf and step <= 30:
        due.append(step)
    assert due == [7, 10, 12, 14, 20, 21, 28, 30]
    assert Schedule().next_after(3) == math.inf
    with pytest.raises(ValueError, match="every"):
        schedule.register(every=0)
    with pytest.raises(ValueError, match="at"):
        schedule.register(at=[0])


def test_average_follows_its_formula() -> None:
    module = nn.Linear(1, 1)
    ema = EMA(module, decay=0.9)
    expected = module.weight.item()
    for step in range(50):
        module.weight.data.fill_(float(step))
        ema.update(module)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_average_copies_buffers_stays_in_eval_mode_and_is_restored() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMA(module, decay=0.99).train()
    module(torch.randn(8, 2) + 3)
    ema.update(module)
    torch.testing.assert_close(ema.module[1].running_mean, module[1].running_mean)
    assert not ema.module.training
    other = EMA(module, decay=0.99)
    other.load_state_dict(ema.state_dict())
    module[0].weight.data.add_(1)
    for average in (ema, other):  # by how much it moves depends on the updates before
        average.update(module)
    assert torch.equal(other.module[0].weight, ema.module[0].weight)
    with pytest.raises(ValueError, match="ema_decay"):
        EMA(module, decay=1.0)


def test_isolated_draws_leave_no_trace() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    undisturbed = [draw(), draw()]
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    disturbed = [draw()]
    with isolated_rng(5):
        first = draw()
    with isolated_rng(5):
        assert draw() == first
    disturbed.append(draw())
    assert disturbed == undisturbed


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "step=00000001.ckpt"
    counters = {"counters": Counters(generator_steps=1).state_dict()}
    whole = {"flexgen": counters, "state_dict": {}, "callbacks": {}, "x": torch.arange(3)}
    save_checkpoint(whole, path)

    def fail(beside: Path) -> None:
        beside.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left.*free some disk space"):
        write_atomically(path, fail)
    assert load_checkpoint(path)["x"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_damaged_checkpoints_are_told(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step=00000005.ckpt"
    save_checkpoint({"flexgen": {}, "x": torch.randn(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short, damaged"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="not written by FlexGen"):
        load_checkpoint(path)
    torch.save({"flexgen": {}, "code": Path("x")}, path)
    with pytest.raises(ValueError, match="damaged or not FlexGen's"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.ckpt")


def test_a_flipped_bit_and_another_steps_checkpoint_are_told(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step=00000005.ckpt"
    weight = torch.full((64,), 0.1234)
    counters = {"counters": Counters(generator_steps=5).state_dict()}
    save_checkpoint({"flexgen": counters, "state_dict": {"w": weight}, "callbacks": {}}, path)
    load_checkpoint(path)
    other = path.with_name("step=00000007.ckpt")
    other.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="is one of step 5, and not its own"):
        load_checkpoint(other)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(weight[:4].numpy().tobytes())] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        load_checkpoint(path)


def test_what_torch_reads_is_what_was_checked(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step=00000000.ckpt"
    content = {
        "flexgen": {"counters": Counters().state_dict()}, "state_dict": {}, "callbacks": {}
    }  # fmt: skip
    save_checkpoint(content, path)
    whole = path.read_bytes()
    first = [(entry.filename, zipfile.ZipFile(path).read(entry)) for entry in _entries(path)]
    legacy = io.BytesIO()
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    for bad, told in (
        (whole + whole, "something comes before it"),
        (legacy.getvalue() + whole, "something comes before it"),
        (legacy.getvalue(), "not a zip file"),
        (archive([*first, first[0]]), "two of its entries have one name"),
        (archive(first, zipfile.ZIP_DEFLATED), "it is compressed"),
    ):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=told):
            load_checkpoint(path)
    path.write_bytes(archive(first))
    load_checkpoint(path)


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as opened:
        return opened.infolist()


def test_the_latest_checkpoint_is_by_step(tmp_path: Path) -> None:
    for name in ("step=00000009.ckpt", "step=00000100.ckpt", "before_refit_step=00000200.ckpt"):
        save_checkpoint({"flexgen": {}}, tmp_path / "checkpoints" / name)
    (tmp_path / "checkpoints" / ".step=00000300.ckpt.1.part").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).name == "step=00000100.ckpt"
    assert len(find_checkpoints(tmp_path)) == 2
    with pytest.raises(FileNotFoundError, match="flexgen train"):
        latest_checkpoint(tmp_path / "checkpoints")


def test_metrics_merge_by_step_and_rewind(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    for step in (1, 2, 3):
        axes = {"batches": step, "critic_steps": step, "generator_steps": step, "images_seen": step}
        logger.log_metrics({**axes, "a": step / 3})
        logger.log_metrics({**axes, "b": 10.0 * step})
    logger.save()
    columns, rows = read_metrics(tmp_path / "metrics.csv")
    assert columns[4:] == ["a", "b"]
    assert [row["b"] for row in rows] == [10, 20, 30]
    assert rows[0]["a"] == 1 / 3  # every digit is kept
    again = CSVLogger(str(tmp_path))
    again.rewind(2)
    again.log_metrics({"batches": 9, "critic_steps": 9, "generator_steps": 9, "images_seen": 9})
    again.save()
    assert [row["generator_steps"] for row in read_metrics(again.path).rows] == [1, 2, 9]
    again.path.write_text("nonsense\n1\n")
    with pytest.raises(ValueError, match="line 1 has no column batches"):
        read_metrics(again.path)


def test_a_run_goes_on_from_metrics_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("batches,critic_steps,generator_steps,images_seen,a\n1,1,1,9,0.5\n2,2,2,18,0.2")
    logger = CSVLogger(str(tmp_path))
    logger.rewind(5)
    logger.log_metrics({**Counters(generator_steps=3).axes(), "a": 1.0})
    logger.save()
    assert [(row["generator_steps"], row["a"]) for row in read_metrics(path).rows] == [
        (1, 0.5),
        (3, 1.0),
    ]


def test_the_counters_of_training_are_the_columns_that_every_row_has() -> None:
    assert tuple(Counters().axes()) == COUNTERS


def test_a_row_is_appended_however_many_there_are(tmp_path: Path) -> None:
    def row(step: int, **values: float) -> dict[str, float]:
        return {**Counters(generator_steps=step).axes(), **values}

    logger = CSVLogger(str(tmp_path))
    logger.log_metrics(row(1, a=1.0))
    logger.save()
    kept = logger.path.stat().st_ino
    for step in range(2, 2000):
        logger.log_metrics(row(step, a=1 / step))
    logger.save()
    before = logger.path.read_bytes()
    logger.log_metrics(row(1999, a=2.0))
    logger.save()
    assert logger.path.stat().st_ino == kept
    assert logger.path.read_bytes() == before.replace(repr(1 / 1999).encode(), b"2.0")
    logger.log_metrics(row(2000, b=3.0))  # a new column: the file is copied once
    logger.save()
    assert logger.path.stat().st_ino != kept
    columns, rows = read_metrics(logger.path)
    assert (columns[4:], len(rows), rows[0]["a"], rows[-1]["b"]) == (["a", "b"], 2000, 1.0, 3.0)
    assert logger.path.read_text().splitlines()[1] == "0,0,1,0,1.0"


def test_rewinding_leaves_out_a_cut_line_and_is_told_of_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    whole = "batches,critic_steps,generator_steps,images_seen,a\n1,1,1,1,0.5\n2,2,2,2\n"
    path.write_text(whole + "3,3,3,3,0.")
    (tmp_path / "linked").hardlink_to(path)
    logger = CSVLogger(str(tmp_path))
    logger.rewind(7)
    logger.log_metrics({**Counters(generator_steps=2).axes(), "a": 0.25})
    logger.save()
    assert path.read_text().splitlines()[2] == "0,0,2,0,0.25"
    assert (tmp_path / "linked").read_text() == whole + "3,3,3,3,0."
    for bad in ("3,3,x,3\n", "3,3\n", "3,3,3,3,1,1\n", "3,3,3,3,\0\n"):
        path.write_text(whole + bad)
        with pytest.raises(ValueError, match=r"corrupt: line 4.*; remove that line"):
            CSVLogger(str(tmp_path)).rewind(7)


def test_processes_of_all_seeds_draw_apart() -> None:
    seeds = [seed_of_rank(seed, rank) for seed in range(20) for rank in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert [seed_of_rank(seed, 0) for seed in range(20)] == list(range(20))
    torch.manual_seed(max(seeds))


def test_values_without_counters_join_the_last_row(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"lr": 0.1})
    logger.log_metrics({**Counters(generator_steps=3).axes(), "a": 1.0})
    logger.log_metrics({"lr": 0.2}, step=17)
    logger.save()
    rows = read_metrics(tmp_path / "metrics.csv").rows
    assert [(row["generator_steps"], row["a"], row["lr"]) for row in rows] == [(3, 1, 0.2)]
