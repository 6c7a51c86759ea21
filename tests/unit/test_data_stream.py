"""The stream of training batches: restorable anywhere, one sequence however the data are held."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import get_worker_info

from flexgen.data import DataModule, ImageData, Stream, ring8
from flexgen.data.sources import Shape, Source
from flexgen.data.stream import CHUNK_BYTES


def take(stream: Stream, n: int) -> Tensor:
    return torch.stack([next(stream).x for _ in range(n)])


def digits(**options: object) -> ImageData:
    return ImageData("digits", **{"batch_size": 100, **options})  # type: ignore[arg-type]


@pytest.fixture(params=["toy", "digits", "large", "flipped"])
def data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DataModule:
    if request.param == "toy":
        return ring8(num_train=5_000, batch_size=70)
    if request.param == "large":  # above the size that is scaled once, and three batches a chunk
        monkeypatch.setattr("flexgen.data.module.SCALED_BYTES", 0)
        monkeypatch.setitem(CHUNK_BYTES, "cpu", 3 * 90 * 64 * 4)
        return digits(batch_size=90)
    return digits(flip=request.param == "flipped")


# 12 batches of digits an epoch, 13 of those held as uint8, 71 of points.
@pytest.mark.parametrize("position", [1, 7, 12, 13, 31, 33])
def test_position_restores_the_stream_in_mid_epoch(data: DataModule, position: int) -> None:
    stream = data.stream()
    take(stream, position)
    assert stream.position == position
    assert torch.equal(take(stream, 30), take(data.stream(position=position), 30))


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_together_stream_what_one_process_does(data: DataModule, world: int) -> None:
    alone = take(data.stream(), 8 * world)
    ranks = torch.stack([take(data.stream(rank=r, world_size=world), 8) for r in range(world)])
    assert torch.equal(ranks.transpose(0, 1).flatten(0, 1), alone)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_workers_stream_what_a_resident_tensor_does(
    flip: bool, shape: tuple[int, int, int]
) -> None:
    options = {"flip": flip, "shape": shape, "num_test": 1_400}
    resident = digits(**options, resident=True)
    worker = digits(**options, resident=False, num_workers=0)
    for position, rank, world in ((0, 0, 1), (5, 1, 2)):
        a = take(resident.stream("cpu", position, rank, world), 6)
        b = take(worker.stream("cpu", position, rank, world), 6)
        assert torch.equal(a, b)


def test_worker_processes_keep_the_order_and_read_ahead_without_counting() -> None:
    stream = digits(resident=False, num_workers=2).stream(position=3)
    expected = digits().stream(position=3)
    for taken in range(1, 15):
        assert torch.equal(next(stream).x, next(expected).x)
        assert stream.position == 3 + taken


def test_large_sets_are_read_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(source: Source, index: Tensor, shape: Shape, crop: int | None) -> Tensor:
        if get_worker_info() is None:
            raise AssertionError("read in the main process")
        return torch.full((len(index), *shape), 255, dtype=torch.uint8)

    monkeypatch.setattr("flexgen.data.images.decode", decode)
    data = digits(resident=False, num_workers=1, batch_size=10)
    assert torch.equal(next(data.stream()).x, torch.ones(10, 1, 8, 8))


def test_auto_keeps_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks(*_: object) -> itertools.repeat:
        return itertools.repeat((torch.full((100, 1, 8, 8), 7.0), None))

    monkeypatch.setattr("flexgen.data.images.worker_chunks", chunks)
    assert next(digits().stream()).x.ne(7).any()
    monkeypatch.setattr("flexgen.data.images.RESIDENT_BYTES", 1257 * 64)
    assert next(digits().stream()).x.ne(7).any()
    monkeypatch.setattr("flexgen.data.images.RESIDENT_BYTES", 1257 * 64 - 1)
    assert next(digits().stream()).x.eq(7).all()
    assert next(digits(resident=True).stream()).x.ne(7).any()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_breaks_in_a_worker_is_one_line(num_workers: int, tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(b"not an image")
    data = ImageData(
        "folder", (1, 8, 8), root=tmp_path, batch_size=5, resident=False, num_workers=num_workers
    )
    with pytest.raises(ValueError, match=r"^cannot read 12 of 12 images .*\.png \("):
        next(data.stream())


@pytest.mark.parametrize("resident", [True, False])
def test_the_global_generator_is_left_alone(resident: bool) -> None:
    data = digits(resident=resident, num_workers=1, flip=True)
    before = torch.get_rng_state()
    take(data.stream(), 15)
    data.split("test", n=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_first_asked_for_in_inference_mode_can_be_trained_on() -> None:
    stream = digits().stream()
    with torch.inference_mode():
        next(stream)
    x = next(stream).x
    weight = torch.ones(8, requires_grad=True)
    (x * weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum((0, 1, 2)))
    x.requires_grad_().sum().backward()


@pytest.mark.parametrize("scaled", [0, 2**20])
@pytest.mark.parametrize("resident", [True, False])
def test_writing_into_a_batch_leaves_the_data_alone(
    resident: bool, scaled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexgen.data.module.SCALED_BYTES", scaled)
    data = digits(resident=resident, num_workers=0)
    expected = take(data.stream(), 24)
    stream = data.stream()
    for _ in range(24):
        next(stream).x.zero_()
    assert torch.equal(take(data.stream(), 24), expected)


def test_flips_mirror_half_of_the_images_and_differ_from_epoch_to_epoch() -> None:
    plain, flipped = digits().stream(), digits(flip=True).stream()
    rates = []
    for _ in range(24):
        x, y = next(plain).x, next(flipped).x
        same, mirrored = (y == x).flatten(1).all(1), (y == x.flip(-1)).flatten(1).all(1)
        assert (same | mirrored).all()
        rates.append((mirrored & ~same).float().mean().item())
    assert sum(rates) / 24 == pytest.approx(0.5, abs=0.05)
    assert len(set(rates)) > 5


def test_scale_reaches_both_ends_exactly() -> None:
    for bounds in ((-1.0, 1.0), (0.0, 1.0)):
        data = digits(range=bounds)
        x, _ = data.split("train")
        assert (x.min().item(), x.max().item()) == bounds
        assert {*take(data.stream(), 12).unique().tolist()} <= {*x.unique().tolist()}


class Probe(pl.LightningModule):
    """Pulls two batches a step, as a critic and a generator would."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(2, 1)
        self.steps, self.seen, self.streams = steps, [], set()

    def training_step(self, batch: Stream, batch_idx: int) -> None:
        self.streams.add(batch)
        assert batch.position == self.trainer.datamodule.position + 2 * batch_idx
        optimizer = self.optimizers()
        for _ in range(2):
            x = next(batch).x
            self.seen.append(x)
            optimizer.zero_grad()
            self.manual_backward(self.layer(x).mean())
            optimizer.step()
        self.log("loss", 0.0)
        if batch_idx + 1 == self.steps:
            self.trainer.should_stop = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 on torch 2.15
def test_lightning_hands_the_stream_itself_to_the_step_and_takes_nothing_from_it(
    tmp_path: Path,
) -> None:
    data = ring8(num_train=1_000, batch_size=100)
    data.position = 7
    probe = Probe(steps=6)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(probe, datamodule=data)
    (stream,) = probe.streams
    assert stream.position == 7 + 12
    assert torch.equal(torch.stack(probe.seen), take(data.stream(position=7), 12))


def test_lightning_can_neither_walk_through_a_stream_nor_move_it() -> None:
    stream = ring8(num_train=1_000).stream()
    assert not isinstance(stream, Iterable)
    assert move_data_to_device(stream, "meta") is stream
    with pytest.raises(MisconfigurationException, match="batch_size"):
        extract_batch_size(stream)
    assert stream.position == 0


def test_without_a_trainer_the_loader_starts_at_the_saved_position() -> None:
    data = ring8(num_train=1_000, batch_size=100)
    data.position = 4
    loader = iter(data.train_dataloader())
    stream = next(loader)
    assert next(loader) is stream
    assert stream.position == 4
    assert torch.equal(next(stream).x, take(data.stream(), 5)[4])
