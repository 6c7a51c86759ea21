"""Arrays and tables of one's own: shape, range and classes are found, and what is wrong is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from flexgen.data import ArrayData, ImageData, TableData

PARTS = ("train", "validation", "test")
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 8, 6), dtype=np.uint8)
PIXELS[:, 0, 0], PIXELS[:, 0, 1] = 0, 255
UNIT = PIXELS / 255


def array(path: Path, x: np.ndarray, **options: Any) -> ArrayData:
    np.save(path / "x.npy", x)
    return ArrayData(path / "x.npy", **{"batch_size": 4, **options})


@pytest.mark.parametrize(
    ("x", "shape", "bounds"),
    [
        (PIXELS, (1, 8, 6), (-1, 1)),
        (PIXELS[:, None], (1, 8, 6), (-1, 1)),
        (PIXELS[..., None].repeat(3, 3), (3, 8, 6), (-1, 1)),
        (PIXELS.astype(np.uint16) * 257, (1, 8, 6), (-1, 1)),
        (PIXELS.astype(np.int64), (1, 8, 6), (-1, 1)),
        (PIXELS > 99, (1, 8, 6), (0, 1)),
        (np.asfortranarray(UNIT), (1, 8, 6), (0, 1)),
        (UNIT.astype(">f4"), (1, 8, 6), (0, 1)),
        ((UNIT * 2 - 1).astype(np.float16), (1, 8, 6), (-1, 1)),
        (UNIT.reshape(60, -1), (48,), None),
        (UNIT[:, 0, 0], (1,), None),
    ],
)
def test_shape_and_range_are_found(
    tmp_path: Path, x: np.ndarray, shape: tuple[int, ...], bounds: tuple[int, int] | None
) -> None:
    data = array(tmp_path, x)
    assert (data.shape, data.range) == (shape, bounds)
    assert sum(data.size(part) for part in PARTS) == 60
    for part in PARTS:
        found, _ = data.split(part)
        assert found.shape[1:] == shape
        assert found.dtype == torch.float32
        if bounds is not None:
            assert (found.min(), found.max()) == pytest.approx(bounds, abs=1e-3)


def test_images_of_an_array_are_those_of_the_file(tmp_path: Path) -> None:
    data = array(tmp_path, PIXELS, num_test=0, num_validation=0)
    expected = torch.from_numpy(PIXELS).float().unsqueeze(1) / 127.5 - 1
    torch.testing.assert_close(data.split("train")[0], expected)


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_classes_are_another_array_of_the_file(tmp_path: Path, kind: str) -> None:
    y, path = np.arange(60) % 3, tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(path, x=UNIT, y=y)
    else:
        torch.save({"x": torch.from_numpy(UNIT), "y": torch.from_numpy(y)}, path)
    data = ArrayData(path, key="x", labels="y", batch_size=4)
    assert data.num_classes == 3
    x, labels = data.split("train")
    rows = [
        int(i)
        for i in (x[:, None] - torch.from_numpy(UNIT[:, None]).float())
        .flatten(2)
        .abs()
        .sum(2)
        .argmin(1)
    ]
    assert labels is not None
    assert labels.tolist() == [i % 3 for i in rows]
    with pytest.raises(ValueError, match=r"holds the arrays x, y; say which"):
        ArrayData(path)
    with pytest.raises(ValueError, match=r"`labels` must name whole numbers"):
        ArrayData(path, key="x", labels="x", batch_size=4).setup()


def test_rows_that_are_added_move_no_others(tmp_path: Path) -> None:
    x = np.arange(90.0)
    few = [set(array(tmp_path, x[:60]).split(part)[0].flatten().tolist()) for part in PARTS]
    more = [set(array(tmp_path, x).split(part)[0].flatten().tolist()) for part in PARTS]
    assert all(old < new for old, new in zip(few, more, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_rows_without_numbers_are_named_or_left_out(tmp_path: Path, value: float) -> None:
    x = np.zeros((60, 3))
    x[[4, 7], 1] = value
    with pytest.raises(ValueError, match=r"2 of 60 rows .* \(rows 4, 7\).*unusable=leave_out"):
        array(tmp_path, x).setup()
    data = array(tmp_path, x, unusable="leave_out")
    assert sum(data.size(part) for part in PARTS) == 58


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (PIXELS * 9.0, r"lie in \[0, 2295\]: what are black and white there\?.*data_range"),
        (PIXELS[..., None].repeat(4, 3), "have 4 channels.*lay colour on a background"),
        (np.array([{}] * 9), "Python objects"),
        (np.array(["a"] * 9), "is not one of numbers"),
        (PIXELS[:0], "at least one example"),
        (np.array(3.0), "at least one example"),
        (PIXELS[:1], "must be at most the 1 training examples"),
    ],
)
def test_arrays_that_will_not_do(tmp_path: Path, x: np.ndarray, told: str) -> None:
    np.save(tmp_path / "x.npy", x, allow_pickle=True)
    with pytest.raises(ValueError, match=told):
        ArrayData(tmp_path / "x.npy").setup()


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), {"x": np.zeros(3)}, [1, 2]])
def test_a_torch_file_is_tensors_alone(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"cannot read .*x.pt|holds the arrays none"):
        ArrayData(tmp_path / "x.pt")


CSV = "a,b;c,kind\n" + "".join(f"{i},{i * i},{'cat' if i % 2 else 'dog'}\n" for i in range(60))


def table(path: Path, text: str, **options: Any) -> TableData:
    (path / "x.csv").write_text(text)
    return TableData(path / "x.csv", **{"batch_size": 1, **options})


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_is_standardised_by_its_training_rows(tmp_path: Path, delimiter: str) -> None:
    text = CSV.replace(";", "").replace(",", delimiter)
    data = table(tmp_path, text, label="kind")
    x, y = data.split("train")
    assert (data.shape, data.range) == ((2,), None)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2))
    original = data.original(x).round()
    torch.testing.assert_close(original[:, 1], original[:, 0] ** 2)
    assert y is not None
    assert data.class_names == ["cat", "dog"]
    assert y.tolist() == [1 - int(i) % 2 for i in original[:, 0]]
    assert table(tmp_path, text, columns=["bc"]).shape == (1,)


def test_a_table_without_names_counts_its_columns(tmp_path: Path) -> None:
    data = table(tmp_path, "1,2\n3,4\n5,6\n7,8\n", columns=["1"], standardise=False)
    assert sorted(x for part in PARTS for x in data.split(part)[0].flatten().tolist()) == [
        2,
        4,
        6,
        8,
    ]


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("a,b\n1,x\n", {}, r"column 'b' .* got 'x' in row 0; choose others.*data.label=b"),
        ("a,b\n1\n", {}, "row 0 .* must have 2 cells.* got 1"),
        ("a,a\n1,2\n", {}, "names a column 'a' twice"),
        ("a,b\n", {}, "has no rows"),
        ("", {}, "has no rows"),
        ("a,b\n1,2\n3,\n5,6\n7,8\n", {}, r"1 of 4 rows .* lack a cell.*\(rows 1\).*leave_out"),
        ("a,b\n1,2\n3,?\n5,6\n7,8\n", {"label": "b"}, r"1 of 4 rows .* lack a cell"),
        ("a,b\n1,2\n", {"columns": ["c"]}, "must name columns of .*, a, b, got 'c'"),
        ("a,b\n1,2\n", {"shape": [3]}, r"`shape` must be \(2,\).*got \(3,\)"),
        ("a,b\n1,2\n", {"range": [0, 1]}, "`range` must be null"),
    ],
)
def test_tables_that_will_not_do(
    tmp_path: Path, text: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        table(tmp_path, text, **options).setup()


def test_parquet_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        TableData(tmp_path / "x.parquet")


def test_training_batches_alone_are_augmented_by_their_position(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_test": 10, "num_validation": 10, "batch_size": 40}
    plain = array(tmp_path, PIXELS, **options)
    data = array(tmp_path, PIXELS, augment=[v2.RandomHorizontalFlip()], **options)
    state = torch.get_rng_state()
    stream = data.stream()
    batches = [next(stream).x for _ in range(4)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(next(data.stream(position=2)).x, batches[2])
    was = next(plain.stream()).x
    same, turned = ((batches[0] == x).flatten(1).all(1) for x in (was, was.flip(-1)))
    assert (same | turned).all()
    assert 5 < same.sum() < 35
    assert torch.equal(data.split("validation")[0], plain.split("validation")[0])


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (v2.Resize(4), r"must keep an example's shape and type, \(1, 8, 8\) torch.uint8"),
        (v2.ToDtype(torch.float32, scale=True), "must keep an example's shape and type"),
        (lambda x: x.nonsense, "cannot be applied .*nonsense"),
    ],
)
def test_augmentation_that_will_not_do(transform: Callable[[Tensor], Tensor], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ImageData("digits", augment=[transform]).setup()
