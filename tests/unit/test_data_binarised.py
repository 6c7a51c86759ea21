"""Binarised images: zeros and ones of the stated law, one fixed draw, a stream that is restored."""

import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flexgen.data import SPECS, ArrayData, DataModule, ImageData, Stream
from flexgen.data.binarised import Larochelle, read_amat
from flexgen.data.sampler import Order, Purpose, thresholds
from flexgen.data.stream import CHUNK_BYTES

PARTS = ("train", "validation", "test")
AMAT = (
    ("train", "binarized_mnist/binarized_mnist_train.amat", 12),
    ("validation", "binarized_mnist/binarized_mnist_valid.amat", 5),
    ("test", "binarized_mnist/binarized_mnist_test.amat", 7),
)


def digits(binarise: str | None, **options: object) -> ImageData:
    return ImageData("digits", range=(0, 1), binarise=binarise, **options)  # type: ignore[arg-type]


def take(data: ImageData, n: int, position: int = 0) -> Tensor:
    stream = data.stream(position=position)
    return torch.stack([next(stream).x for _ in range(n)])


def amat(root: Path) -> dict[str, np.ndarray]:
    """Three files of random binary images, in the form of Larochelle's."""
    (root / "binarized_mnist").mkdir()
    images = {}
    for i, (part, file, num) in enumerate(AMAT):
        images[part] = np.random.default_rng(i).integers(0, 2, (num, 784))
        np.savetxt(root / file, images[part], fmt="%d")
    return images


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published files with a few images each."""
    spec = replace(SPECS["mnist_larochelle"], origin=Larochelle(AMAT))
    monkeypatch.setitem(SPECS, "mnist_larochelle", spec)


def test_thresholds_are_uniform_below_255() -> None:
    u = thresholds((4, 255_000), Purpose.DYNAMIC, 3, 1)
    assert u.dtype == torch.uint8
    count = u.flatten().bincount(minlength=256)
    assert count[255] == 0
    # Chi-squared with 254 degrees of freedom: mean 254, standard deviation 22.5.
    chi_squared = (count[:255] - 4_000).square().sum().item() / 4_000
    assert chi_squared == pytest.approx(254, abs=90)
    assert thresholds((3, 1), Purpose.DYNAMIC, 0).shape == (3, 1)


@pytest.mark.parametrize("binarise", ["static", "dynamic"])
def test_images_are_zeros_and_ones(binarise: str) -> None:
    data = digits(binarise)
    for x in (take(data, 5), *(data.split(part)[0] for part in PARTS)):  # type: ignore[arg-type]
        assert x.dtype == torch.float32
        assert x.unique().tolist() == [0.0, 1.0]
    assert data.name == f"digits_{binarise}"
    assert data.num_classes == 10


@pytest.mark.parametrize("binarise", ["static", "dynamic"])
def test_labels_sizes_and_order_are_those_of_the_grey_images(binarise: str) -> None:
    grey, binary = digits(None), digits(binarise)
    for part in PARTS:
        x, y = grey.split(part, n=60, seed=2)  # type: ignore[arg-type]
        b, y_binary = binary.split(part, n=60, seed=2)  # type: ignore[arg-type]
        assert torch.equal(y, y_binary)  # type: ignore[arg-type]
        assert not b[x == 0].any()
        assert b[x == 1].all()
    x, b = take(grey, 14), take(binary, 14)
    assert not b[x == 0].any()
    assert b[x == 1].all()


def test_the_mean_of_dynamic_draws_is_the_intensity() -> None:
    options = {"num_validation": 0, "num_test": 1_767, "batch_size": 30}  # one batch an epoch
    num, same = 800, torch.arange(800)[:, None]
    every, drawn = take(digits(None, **options), num), take(digits("dynamic", **options), num)
    # One order for both: sorted by what tells grey images apart, each has a place of its own.
    place = (every.flatten(2) @ torch.rand(64)).argsort(1)
    every, total = every[same, place], drawn[same, place].sum(0)
    grey = every[0]
    assert torch.equal(every, grey.expand_as(every))
    deviation = (total / num - grey) / (grey * (1 - grey) / num).sqrt().clamp(min=1e-6)
    assert deviation.abs().max() < 5.5
    some = (grey > 0) & (grey < 1)
    assert deviation[some].std().item() == pytest.approx(1, abs=0.1)


def test_the_static_draw_has_the_intensity_in_every_split() -> None:
    grey, binary = digits(None), digits("static")
    for part in PARTS:
        p, x = (data.split(part)[0] for data in (grey, binary))  # type: ignore[arg-type]
        spread = (p * (1 - p)).sum().sqrt()
        assert (x - p).sum().abs() < 4 * spread
        # Independent of the intensity: the squared residual is the variance.
        variance = (p * (1 - p)).sum().item()
        assert (x - p).square().sum().item() == pytest.approx(variance, rel=0.05)


def test_static_is_one_draw_whatever_the_seed_the_kind_and_the_rows_asked_for() -> None:
    x, _ = digits("static").split("test")
    assert torch.equal(digits("static", seed=7).split("test")[0], x)
    assert torch.equal(digits("dynamic", seed=7).split("test")[0], x)
    index = digits("static").indices("test", n=50, seed=4)
    assert torch.equal(digits("static").split("test", n=50, seed=4)[0], x[index])
    # Alike images have draws of their own.
    assert len(x.flatten(1).unique(dim=0)) > 350


def test_an_image_keeps_its_draw_when_the_cuts_move() -> None:
    small, large = digits("static", num_validation=100), digits("static", num_validation=400)
    mine, others = (d.split("validation")[0].flatten(1) for d in (small, large))
    assert {*map(tuple, mine.tolist())} <= {*map(tuple, others.tolist())}


def test_static_is_the_same_in_every_process_and_version() -> None:
    x, _ = digits("static").split("validation")
    assert crc32(x.bool().numpy().tobytes()) == 0x0E15C5F6


def test_a_static_stream_repeats_its_images_and_a_dynamic_one_does_not() -> None:
    epoch = 1257 // 100
    for binarise, same in (("static", True), ("dynamic", False)):
        data = digits(binarise)
        seen = [{*map(tuple, take(data, epoch, e * epoch).flatten(0, 1).flatten(1).tolist())}
                for e in range(2)]  # fmt: skip
        assert (len(seen[0] & seen[1]) > 1_000) == same


@pytest.mark.parametrize(("seed", "position"), [(0, 1), (1, 0)])
def test_a_dynamic_draw_depends_on_the_seed_and_the_batch(seed: int, position: int) -> None:
    def draw(seed: int, position: int) -> Tensor:
        grey = iter(lambda: (torch.full((10, 1, 8, 8), 128, dtype=torch.uint8), None), None)
        return next(Stream(Order(10, 10, seed), grey, position, binarise=True)).x

    assert torch.equal(draw(seed, position), draw(seed, position))
    assert (draw(seed, position) != draw(0, 0)).float().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("position", [1, 5, 12, 20])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"resident": False, "num_workers": 0}])
def test_position_restores_a_dynamic_stream(
    position: int, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 3 * 100 * 64 * 4)  # three batches a chunk
    data = digits("dynamic", **options)
    assert torch.equal(take(data, 30)[position:], take(data, 30 - position, position))


def own(where: Path, grey: np.ndarray, kind: str, binarise: str | None) -> DataModule:
    """Images as a folder or as an array of some type."""
    options: Any = {"range": (0, 1), "binarise": binarise, "batch_size": 10}
    if kind == "folder":
        for i, image in enumerate(grey):
            Image.fromarray(image).save(where / f"{i:03d}.png")
        return ImageData("folder", root=where, **options)
    np.save(where / "x.npy", grey if kind == "uint8" else (grey / 255).astype(kind))
    return ArrayData(where / "x.npy", **options)


@pytest.mark.parametrize("kind", ["folder", "uint8", "float32"])
def test_data_of_ones_own_are_binarised_too(tmp_path: Path, kind: str) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8)
    (tmp_path / "a").mkdir()
    static, levels = (own(tmp_path / "a", grey, kind, b) for b in ("static", None))
    x, v = (data.split("train")[0] for data in (static, levels))
    assert static.name == f"{'folder' if kind == 'folder' else 'array'}_static"
    assert set(x.unique().tolist()) == {0, 1}
    assert torch.equal(x, static.split("train")[0])
    for low in (0, 0.25, 0.5, 0.75):  # x ~ B(v)
        near = (v >= low) & (v < low + 0.25)
        assert x[near].mean() == pytest.approx(float(v[near].mean()), abs=0.04)
    dynamic = own(tmp_path / "a", grey, kind, "dynamic")
    for part in ("train", "validation", "test"):
        assert torch.equal(dynamic.split(part)[0], static.split(part)[0])
    batches = dynamic.stream()
    whole = [torch.cat([next(batches).x for _ in range(dynamic.size("train") // 10)]) for _ in "ab"]
    assert set(whole[0].unique().tolist()) == {0, 1}
    assert float(whole[0].mean()) == pytest.approx(0.5, abs=0.03)
    first, again = (own(tmp_path / "a", grey, kind, "dynamic").stream() for _ in "ab")
    assert torch.equal(next(first).x, next(again).x)


def test_what_is_added_to_an_array_changes_no_draw(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (260, 4, 4), np.uint8)
    few = own(tmp_path, grey[:200], "uint8", "static").split("test")[0]
    more = own(tmp_path, grey, "uint8", "static").split("test")[0]
    assert torch.equal(more[: len(few)], few)


@pytest.mark.parametrize("binarise", ["static", "dynamic"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_stream_what_a_resident_tensor_does(binarise: str, num_workers: int) -> None:
    resident = digits(binarise, resident=True)
    workers = digits(binarise, resident=False, num_workers=num_workers)
    assert torch.equal(take(resident, 14), take(workers, 14))


def test_ranks_together_draw_what_one_process_does() -> None:
    data = digits("dynamic")
    streams = [data.stream(rank=rank, world_size=2) for rank in range(2)]
    together = torch.stack([next(streams[i % 2]).x for i in range(8)])
    assert torch.equal(together, take(data, 8))


def test_a_dynamic_stream_leaves_the_data_and_the_global_generators_alone() -> None:
    data = digits("dynamic")
    state, legacy = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    first = take(data, 14)
    assert torch.equal(take(data, 14), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == legacy).all()  # noqa: NPY002


# --- Larochelle's files ---------------------------------------------------------------------------


def mnist(root: Path, **options: object) -> ImageData:
    return ImageData(
        "mnist",
        **{"root": root, "range": (0, 1), "batch_size": 5, "binarise": "static", **options},  # type: ignore[arg-type]
    )


@pytest.mark.usefixtures("small")
def test_published_files_are_used_where_they_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = amat(tmp_path)
    with caplog.at_level(logging.INFO):
        data = mnist(tmp_path)
    assert caplog.messages == ["mnist, static: read from the files of mnist_larochelle"]
    assert data.name == "mnist_larochelle"
    assert data.num_classes is None
    for part, _, num in AMAT:
        x, y = data.split(part)  # type: ignore[arg-type]
        assert y is None
        assert data.size(part) == num  # type: ignore[arg-type]
        assert torch.equal(x, torch.from_numpy(images[part]).view(num, 1, 28, 28).float())
    assert next(data.stream()).x.unique().tolist() == [0.0, 1.0]
    explicit = ImageData("mnist_larochelle", root=tmp_path, range=(0, 1), batch_size=5)
    assert torch.equal(explicit.split("test")[0], data.split("test")[0])


@pytest.mark.usefixtures("small")
def test_grey_images_are_drawn_where_the_files_are_not_used(tmp_path: Path) -> None:
    amat(tmp_path)
    assert mnist(tmp_path, binarise="dynamic").name == "mnist_dynamic"
    assert mnist(tmp_path, shape=(1, 14, 14)).name == "mnist_static"
    assert mnist(tmp_path / "elsewhere").name == "mnist_static"


def test_mnist_is_drawn_from_its_own_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, num in (("train", 30), ("t10k", 20)):
        pixels = np.full((num, 28, 28), 51, np.uint8).tobytes()
        head = struct.pack(">IIII", 0x803, num, 28, 28), struct.pack(">II", 0x801, num)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head[0] + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head[1] + bytes(num))
    data = mnist(tmp_path, num_validation=10)
    draws = torch.cat([data.split(part)[0].flatten(1) for part in PARTS])  # type: ignore[arg-type]
    assert draws.mean().item() == pytest.approx(0.2, abs=0.01)
    assert len(draws.unique(dim=0)) == 50  # no two images share a draw, in whichever split


@pytest.mark.usefixtures("small")
def test_a_missing_file_of_three_is_named(tmp_path: Path) -> None:
    amat(tmp_path)
    (tmp_path / AMAT[1][1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*binarized_mnist_valid.amat; set `paths"):
        mnist(tmp_path).setup()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 1\n0 1\n", "must have 3 values in line 2, got 2; it is cut short"),
        ("0 1 1\n0 1 1 0\n", "must have 3 values in line 2, got 4"),
        ("0 1 1\n0 2 1\n", "must have zeros and ones in line 2, got 2"),
        ("0 1 1\n0 10 1\n", "must have zeros and ones in line 2, got 10"),
        ("0 1 1\n0 é 1\n", "must have zeros and ones in line 2, got"),
        ("0 1 1\n", "must have 2 lines, got 1"),
        ("", "must have 2 lines, got 0"),
        ("0 1 1\n" * 3, "must have 2 lines, got 3"),
    ],
)
def test_a_corrupt_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.amat"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_amat(path, 2, 3)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_any_white_space_separates_values(tmp_path: Path) -> None:
    path = tmp_path / "x.amat"
    path.write_bytes(b"0 1 1 \r\n1\t0  1\r\n")
    assert read_amat(path, 2, 3).tolist() == [[0, 255, 255], [255, 0, 255]]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binarise": "always"}, "`binarise` must be one of null, static, dynamic, got 'always'"),
        (
            {"binarise": "static", "shape": (3, 8, 8)},
            r"`shape` must have 1 channel with `binarise`, got \(3, 8, 8\); "
            r"set `data.shape=\[1,8,8\]` or `data.binarise=null`",
        ),
        (
            {"binarise": "dynamic", "range": (-1, 1)},
            r"`range` must be \[0, 1\] with `binarise`, got \[-1, 1\]; set `data.range=\[0,1\]`",
        ),
    ],
)
def test_what_cannot_be_binarised_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData("digits", **{"range": (0, 1), **options})  # type: ignore[arg-type]
