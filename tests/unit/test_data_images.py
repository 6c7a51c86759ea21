"""Image data sets: official parts apart, fixed splits, one clear line for what is amiss."""

import ast
import csv
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch import Tensor

import flexgen.data
from flexgen.data import SPECS, ImageData
from flexgen.data.images import folder_shape
from flexgen.data.sources import Pixels, decode

REPOSITORY = Path(__file__).parents[2]
PARTS = ("train", "validation", "test")


def real_data() -> Path:
    """Folder of real data sets, if this machine has one."""
    return Path(os.environ.get("FLEXGEN_DATA", REPOSITORY.parent / "shared" / "data"))


def pixels(n: int, height: int, width: int, start: int = 0) -> np.ndarray:
    """Images that all differ: image i is of grey level `start + i`."""
    return (
        np.full((n, height, width), 1, np.uint8)
        * (start + np.arange(n, dtype=np.uint8))[:, None, None]
    )


def write_idx(root: Path, num_train: int = 40, num_test: int = 20, name: str = "MNIST") -> Path:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, n, start in (("train", num_train, 0), ("t10k", num_test, num_train)):
        images, labels = pixels(n, 28, 28, start), np.arange(n, dtype=np.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, n) + labels.tobytes()
        )
    return root


def mnist(root: Path, **options: object) -> ImageData:
    return ImageData(
        "mnist",
        **{"root": root, "num_validation": 10, "batch_size": 5, **options},  # type: ignore[arg-type]
    )


def levels(data: ImageData, part: str) -> Tensor:
    """Grey level of each image of a split, which tells the images of `pixels` apart."""
    return ((data.split(part)[0].amax((1, 2, 3)) + 1) * 127.5).round().long()  # type: ignore[arg-type]


def write_png(
    path: Path, size: tuple[int, int] = (12, 10), level: int = 0, mode: str = "L"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode in "L1" else (level,) * 3).save(path)


# --- digits ---------------------------------------------------------------------------------------


def test_digits_are_split_by_class_whatever_the_seed() -> None:
    data = ImageData("digits", seed=0)
    sizes = [data.size(part) for part in PARTS]
    assert sizes == [1257, 180, 360]
    for part, share in zip(PARTS, (125.7, 18.0, 36.0), strict=True):
        x, y = data.split(part)
        assert x.shape[1:] == data.shape == (1, 8, 8)
        assert y is not None
        assert (y.bincount(minlength=10) - share).abs().max() < 0.05 * share + 1
        assert torch.equal(x, ImageData("digits", seed=5).split(part)[0])
    # 1,797 scans, of which a handful are alike to the pixel.
    everything = torch.cat([data.split(part)[0].flatten(1) for part in PARTS])
    from sklearn.datasets import load_digits

    scans = torch.from_numpy(load_digits().data).float() / 8 - 1
    torch.testing.assert_close(everything.sum(0) / 1797, scans.sum(0) / 1797, atol=0.004, rtol=0)
    assert len(everything.unique(dim=0)) == len(scans.unique(dim=0))


def test_labels_belong_to_their_images() -> None:
    from sklearn.datasets import load_digits

    known = {
        (image / 16 * 255).round().astype(np.uint8).tobytes(): int(label)
        for image, label in zip(load_digits().images, load_digits().target, strict=True)
    }
    x, y = ImageData("digits").split("validation", n=50, seed=3)
    found = [known[i.tobytes()] for i in ((x + 1) * 127.5).round().to(torch.uint8).numpy()]
    assert y is not None
    assert y.tolist() == found


def test_split_draws_without_replacement_by_its_own_seed() -> None:
    data = ImageData("digits")
    x, y = data.split("test", n=100, seed=1)
    index = data.indices("test", n=100, seed=1)
    whole_x, whole_y = data.split("test")
    assert y is not None
    assert whole_y is not None
    assert len(index.unique()) == 100
    assert torch.equal(x, whole_x[index])
    assert torch.equal(y, whole_y[index])
    assert torch.equal(x, ImageData("digits", seed=9).split("test", n=100, seed=1)[0])
    assert not torch.equal(index, data.indices("test", n=100, seed=2))


# --- torchvision's sets, from tiny files of the same form -----------------------------------------


def test_official_parts_stay_apart_and_validation_is_cut_from_training(tmp_path: Path) -> None:
    data = mnist(write_idx(tmp_path))
    train, validation, test = (levels(data, part).tolist() for part in PARTS)
    assert test == list(range(40, 60))
    assert len(train) == 30
    assert train == sorted(train)
    assert len(validation) == 10
    assert sorted(train + validation) == list(range(40))
    assert validation != list(range(30, 40))
    assert data.split("train")[1].tolist() == [i % 10 for i in train]  # type: ignore[union-attr]
    assert levels(mnist(tmp_path, seed=8), "validation").tolist() == validation
    assert data.num_classes == 10


def test_a_smaller_validation_cut_is_within_the_larger(tmp_path: Path) -> None:
    write_idx(tmp_path)
    small = levels(mnist(tmp_path, num_validation=4), "validation").tolist()
    assert set(small) < set(levels(mnist(tmp_path), "validation").tolist())


def test_no_validation_leaves_all_for_training(tmp_path: Path) -> None:
    data = mnist(write_idx(tmp_path), num_validation=0)
    assert data.size("train") == 40
    with pytest.raises(ValueError, match=r"validation split of mnist is empty; set `data.num_val"):
        data.split("validation")


def test_fashion_mnist_has_its_own_folder(tmp_path: Path) -> None:
    write_idx(tmp_path, name="FashionMNIST")
    data = ImageData("fashion_mnist", root=tmp_path, num_validation=10, batch_size=5)
    assert data.size("test") == 20


def test_data_are_found_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXGEN_DATA", str(write_idx(tmp_path)))
    assert ImageData("mnist", num_validation=10, batch_size=5).size("test") == 20


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.files])
def test_missing_data_say_what_to_do(name: str, tmp_path: Path) -> None:
    data = ImageData(name, shape=(1, 8, 8), root=tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        data.setup()
    message = str(caught.value)
    assert message.startswith(f"{name} is not there: no {tmp_path}")
    assert "`paths.data_dir`" in message
    assert "FLEXGEN_DATA" in message
    assert ("download=true" in message) == SPECS[name].origin.has_fetch
    assert "\n" not in message


@pytest.mark.parametrize("file", SPECS["mnist"].files)
@pytest.mark.parametrize("left", [0, 3, 12, 20])
def test_files_cut_short_are_one_line(file: str, left: int, tmp_path: Path) -> None:
    path = write_idx(tmp_path) / file
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"^the files of mnist under .* cut short or corrupt") as e:
        mnist(tmp_path).setup()
    assert "download=true" in str(e.value)
    assert "\n" not in str(e.value)


def test_images_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    path = write_idx(tmp_path) / SPECS["mnist"].files[1]
    path.write_bytes(struct.pack(">II", 0x801, 39) + bytes(39))
    with pytest.raises(ValueError, match="40 images but 39 labels"):
        mnist(tmp_path).setup()


def test_cifar_and_svhn_become_channels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("cifar", "svhn"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)
    image = np.arange(3072, dtype=np.int64).reshape(3, 32, 32) % 251
    image = image.astype(np.uint8)

    cifar = tmp_path / "cifar-10-batches-py"
    cifar.mkdir()
    for i, batch in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        entry = {"data": np.stack([image.ravel()] * 4), "labels": [i] * 4}
        (cifar / batch).write_bytes(pickle.dumps(entry))
    (cifar / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))

    (tmp_path / "SVHN").mkdir()
    for part in ("train", "test"):
        mat = {"X": np.stack([image.transpose(1, 2, 0)] * 20, axis=3), "y": [[10]] * 20}
        scipy.io.savemat(tmp_path / "SVHN" / f"{part}_32x32.mat", mat)

    for name, label in (("cifar10", 5), ("svhn", 0)):
        data = ImageData(name, root=tmp_path, num_validation=2, batch_size=4, range=(0, 255))
        x, y = data.split("test", n=1)
        assert torch.equal(x[0].to(torch.uint8), torch.from_numpy(image))
        assert y.tolist() == [label]  # type: ignore[union-attr]
        assert data.size("train") == 18


def test_celeba_is_cropped_then_resized_and_has_three_official_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.celeba.check_integrity", lambda *_: True)
    names = [f"{i:06}.jpg" for i in range(9)]
    rows = {
        "list_eval_partition.txt": [[n, i // 3] for i, n in enumerate(names)],
        "identity_CelebA.txt": [[n, 1] for n in names],
        "list_bbox_celeba.txt": [[9], ["image_id", "x_1"], *([n, 1] for n in names)],
        "list_landmarks_align_celeba.txt": [[9], ["lefteye_x"], *([n, 1] for n in names)],
        "list_attr_celeba.txt": [[9], ["Bald"], *([n, 1] for n in names)],
    }
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    for file, lines in rows.items():
        with open(tmp_path / "celeba" / file, "w", newline="") as opened:
            csv.writer(opened, delimiter=" ").writerows(lines)
    face = np.zeros((218, 178, 3), np.uint8)
    face[50:168, 30:148] = 255  # just the 118 square about the centre
    for name in names:
        Image.fromarray(face).save(tmp_path / "celeba" / "img_align_celeba" / name, quality=100)

    data = ImageData("celeba", shape=(3, 64, 64), root=tmp_path, batch_size=2)
    assert [data.size(part) for part in PARTS] == [3, 3, 3]
    x, y = data.split("train")
    assert y is None
    assert data.num_classes is None
    assert x.shape == (3, 3, 64, 64)
    assert x.min() > 0.95
    (tmp_path / "celeba" / "img_align_celeba" / names[7]).write_bytes(b"")
    with pytest.raises(ValueError, match=f"cannot read the image .*/{names[7]} "):
        data.split("test")
    with pytest.raises(ValueError, match="`num_validation` must be null for celeba"):
        ImageData("celeba", (3, 64, 64), root=tmp_path, num_validation=2, batch_size=2).setup()


@pytest.mark.parametrize(
    ("name", "called"), [("mnist", ["MNIST", "MNIST"]), ("omniglot", ["Omniglot", "Omniglot"])]
)
def test_download_is_done_once_for_each_part(
    name: str, called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool]] = []

    def fetcher(dataset: str) -> Callable[..., None]:
        return lambda *args, download, **kwargs: calls.append((dataset, download))

    for dataset in set(called):
        monkeypatch.setattr(f"torchvision.datasets.{dataset}", fetcher(dataset))
    ImageData(name, root=tmp_path).prepare_data()
    assert calls == []
    ImageData(name, root=tmp_path, download=True).prepare_data()
    assert calls == [(dataset, True) for dataset in called]


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading:\nTried a mirror, got:\nno route")

    monkeypatch.setattr("torchvision.datasets.MNIST", fail)
    with pytest.raises(
        ConnectionError, match=r"could not download mnist .*Error downl.*network"
    ) as e:
        mnist(tmp_path, download=True).prepare_data()
    assert "\n" not in str(e.value)


def test_real_mnist() -> None:
    root = real_data()
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"no MNIST below {root}; set FLEXGEN_DATA to test with the real set")
    data = ImageData("mnist", root=root)
    assert [data.size(part) for part in PARTS] == [55_000, 5_000, 10_000]
    x, y = data.split("test")
    assert y is not None
    assert y[:5].tolist() == [7, 2, 1, 0, 4]
    assert y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert ((x.mean() + 1) / 2).item() == pytest.approx(0.1325, abs=1e-3)
    stream = data.stream(position=700)
    assert torch.equal(next(stream).x, next(data.stream(position=700)).x)
    batch = next(stream).x
    assert batch.shape == (100, 1, 28, 28)
    assert batch.dtype == torch.float32
    assert (batch.min().item(), batch.max().item()) == (-1.0, 1.0)


# --- Omniglot -------------------------------------------------------------------------------------


def drawing(level: int = 0) -> bytes:
    """Black ink in the middle of white paper, one bit a pixel, as Omniglot is."""
    paper = np.full((105, 105), 255, np.uint8)
    paper[40:65, 40:65] = level
    file = io.BytesIO()
    Image.fromarray(paper).convert("1").save(file, "PNG")
    return file.getvalue()


def write_small(root: Path) -> None:
    (root / "omniglot").mkdir(parents=True)
    for i, alphabets in ((1, ["Greek", "Latin"]), (2, ["Greek", "Sanskrit", "Tagalog"])):
        with zipfile.ZipFile(root / "omniglot" / f"images_background_small{i}.zip", "w") as archive:
            for alphabet in alphabets:
                for character in (1, 2):
                    for n in range(4):
                        archive.writestr(
                            f"images_background_small{i}/{alphabet}/character{character:02}/{n}.png",
                            drawing(),
                        )


def test_small_omniglot_is_read_from_its_zips_and_tests_on_unseen_alphabets(tmp_path: Path) -> None:
    write_small(tmp_path)
    data = ImageData("omniglot_small", (1, 28, 28), root=tmp_path, num_validation=4, batch_size=2)
    assert [data.size(part) for part in PARTS] == [12, 4, 16]
    classes = {part: set(data.split(part)[1].tolist()) for part in PARTS}  # type: ignore[union-attr]
    assert classes["train"] | classes["validation"] == {0, 1, 2, 3}
    assert classes["test"] == {4, 5, 6, 7}
    x, _ = data.split("test", n=1)
    assert x.shape == (1, 1, 28, 28)
    assert x[0, 0, 0, 0] == -1  # paper is black
    assert x[0, 0, 14, 14] == 1  # ink is white


def test_real_small_omniglot() -> None:
    if not (real_data() / "omniglot" / "images_background_small2.zip").exists():
        pytest.skip(f"no omniglot below {real_data()}; set FLEXGEN_DATA to test with the real set")
    data = ImageData("omniglot_small", (1, 28, 28), root=real_data())
    assert [data.size(part) for part in PARTS] == [2_520, 200, 2_120]
    y = torch.cat([data.split(part, n=200)[1] for part in PARTS])  # type: ignore[misc]
    assert y.max() < 242 == data.num_classes


def test_a_broken_zip_is_one_line(tmp_path: Path) -> None:
    write_small(tmp_path)
    archive = tmp_path / "omniglot" / "images_background_small2.zip"
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"small2.zip is cut short or corrupt"):
        ImageData("omniglot_small", root=tmp_path).setup()


def test_omniglot_as_torchvision_unpacks_it(tmp_path: Path) -> None:
    for part, alphabets in (("images_background", "AB"), ("images_evaluation", "AC")):
        for alphabet in alphabets:
            for character in ("character01", "character02"):
                folder = tmp_path / "omniglot-py" / part / alphabet / character
                folder.mkdir(parents=True)
                for n in range(3):
                    (folder / f"{n}.png").write_bytes(drawing())
    data = ImageData("omniglot", (1, 28, 28), root=tmp_path, num_validation=3, batch_size=2)
    assert [data.size(part) for part in PARTS] == [9, 3, 12]
    assert set(data.split("test")[1].tolist()) == {4, 5, 6, 7}  # type: ignore[union-attr]
    assert data.split("test", n=1)[0][0, 0, 14, 14] == 1


def test_missing_omniglot_points_to_the_small_sets_that_are_there(tmp_path: Path) -> None:
    write_small(tmp_path)
    with pytest.raises(FileNotFoundError, match="`data=omniglot_small`"):
        ImageData("omniglot", root=tmp_path).setup()


# --- a folder of images ---------------------------------------------------------------------------


def folder(root: Path, **options: object) -> ImageData:
    return ImageData("folder", **{"shape": (1, 8, 8), "root": root, "batch_size": 2, **options})  # type: ignore[arg-type]


def test_a_flat_folder_has_no_labels_and_a_fixed_split(tmp_path: Path) -> None:
    for i in range(30):
        write_png(tmp_path / f"{i}.png", level=i)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    data = folder(tmp_path)
    found = [levels(data, part).tolist() for part in PARTS]
    assert [len(part) for part in found] == [21, 6, 3]
    assert sorted(i for part in found for i in part) == list(range(30))
    assert data.num_classes is None
    assert data.split("train")[1] is None
    assert [levels(folder(tmp_path, seed=4), part).tolist() for part in PARTS] == found


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [1, 0, 0]), (3, [2, 0, 1]), (60, [43, 8, 9]), (1200, [972, 110, 118])]
)
def test_few_images_leave_enough_to_measure_by(tmp_path: Path, n: int, sizes: list[int]) -> None:
    for i in range(n):
        (tmp_path / f"{i}.png").touch()
    data = folder(tmp_path, batch_size=1)
    assert [data.size(part) for part in PARTS] == sizes


def test_images_that_are_added_move_no_others(tmp_path: Path) -> None:
    for i in range(60):
        write_png(tmp_path / "ab"[i % 2] / f"{i}.png", level=i)
    before = [set(levels(folder(tmp_path), part).tolist()) for part in PARTS]
    for i in range(60, 120):
        write_png(tmp_path / "ab"[i % 2] / f"{i}.png", level=i)
    after = [set(levels(folder(tmp_path), part).tolist()) for part in PARTS]
    assert all(old < new for old, new in zip(before, after, strict=True))
    assert sum(map(len, after)) == 120


def test_a_shape_is_found_from_the_images(tmp_path: Path) -> None:
    write_png(tmp_path / "0.png", size=(12, 10))
    assert folder_shape(tmp_path) == (1, 10, 12)
    assert ImageData("folder", root=tmp_path, batch_size=1).shape == (1, 10, 12)
    write_png(tmp_path / "1.png", size=(90, 80), mode="RGB")
    assert folder_shape(tmp_path) == (3, 10, 10)


def test_images_that_cannot_be_read_are_left_out_on_demand(tmp_path: Path) -> None:
    for i in range(30):
        write_png(tmp_path / f"{i}.png", level=i)
    whole = (tmp_path / "7.png").read_bytes()
    (tmp_path / "7.png").write_bytes(whole[: len(whole) - 30])
    (tmp_path / "8.png").write_bytes(b"")
    data = folder(tmp_path, unusable="leave_out")
    assert sum(data.size(part) for part in PARTS) == 28
    next(data.stream())


@pytest.mark.parametrize("names", [("train", "val"), ("train",), ("train", "test", "validation")])
def test_parts_by_name_may_be_some(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for i in range(10):
            write_png(tmp_path / name / "ab"[i % 2] / f"{i}.png")
    data = folder(tmp_path)
    assert data.num_classes == 2
    assert sum(data.size(part) for part in PARTS) == 10 * len(names)
    assert data.class_names == ["a", "b"]
    if "val" in names:
        assert data.size("validation") == 10


def test_a_linked_class_folder_counts_and_a_loop_ends(tmp_path: Path) -> None:
    for name in ("set/a", "elsewhere/b"):
        for i in range(6):
            write_png(tmp_path / name / f"{i}.png")
    (tmp_path / "set" / "b").symlink_to("../elsewhere/b")
    (tmp_path / "elsewhere" / "b" / "round").symlink_to("../../set")
    data = folder(tmp_path / "set")
    assert sum(data.size(part) for part in PARTS) == 12
    assert data.num_classes == 2
    assert folder(tmp_path / "elsewhere").num_classes == 1


def test_subfolders_are_classes_and_every_split_has_each(tmp_path: Path) -> None:
    for c, name in enumerate(("cat", "dog")):
        for i in range(20):
            write_png(tmp_path / name / ("deep" if i % 2 else "") / f"{i}.png", level=100 * c + i)
    data = folder(tmp_path, num_validation=4, num_test=6)
    assert data.num_classes == 2
    for part, share in zip(PARTS, (15, 2, 3), strict=True):
        _, y = data.split(part)  # type: ignore[arg-type]
        assert y is not None
        assert y.bincount().tolist() == [share, share]
        assert torch.equal(levels(data, part) // 100, y)


def test_train_and_test_subfolders_are_official_parts(tmp_path: Path) -> None:
    for part, start in (("train", 0), ("test", 100)):
        for c, name in enumerate(("cat", "dog")):
            for i in range(10):
                write_png(tmp_path / part / name / f"{i}.png", level=start + 10 * c + i)
    data = folder(tmp_path, num_validation=5)
    assert [data.size(part) for part in PARTS] == [15, 5, 20]
    assert levels(data, "test").tolist() == list(range(100, 120))
    assert data.split("test")[1].tolist() == [0] * 10 + [1] * 10  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="`num_test` must be null for folder"):
        folder(tmp_path, num_test=3).setup()


def test_images_are_cut_to_the_shape_about_their_centre(tmp_path: Path) -> None:
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = (255, 0, 0)
    for i in range(9):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    x, _ = folder(tmp_path, shape=(3, 10, 10), num_test=2, num_validation=2).split("train")
    assert x.shape == (5, 3, 10, 10)
    assert (x[:, 0, :, 1:-1] == 1).all()
    assert (x[:, 1:] == -1).all()
    grey, _ = folder(tmp_path, shape=(1, 10, 10), num_test=2, num_validation=2).split("train")
    assert grey.shape == (5, 1, 10, 10)


def test_only_the_images_asked_for_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        write_png(tmp_path / f"{i}.png", level=i)
    opened: list[str] = []
    plain = Image.open
    monkeypatch.setattr(
        "flexgen.data.sources.Image.open",
        lambda file, **how: (opened.append(file.name), plain(file, **how))[1],
    )
    data = folder(tmp_path, resident=False)
    data.setup()
    assert opened == []
    data.split("train", n=4)
    assert len(opened) == 4


def test_a_corrupt_image_is_one_line_that_names_it(tmp_path: Path) -> None:
    for i in range(20):
        write_png(tmp_path / f"{i}.png", size=(50, 50))
    whole = (tmp_path / "7.png").read_bytes()
    for broken in (b"", b"not an image", whole[: len(whole) // 2]):
        (tmp_path / "7.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"cannot read 1 of 20 .* 7\.png \(.+\)") as caught:
            next(folder(tmp_path, num_test=0, num_validation=0).stream())
        assert "\n" not in str(caught.value)


ENDLESS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{ } loop\n"


def test_no_image_starts_a_program_or_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        write_png(tmp_path / f"{i}.png", size=(8, 8))
    started: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *words, **_: started.append(words))
    (tmp_path / "7.png").write_bytes(ENDLESS)
    with pytest.raises(ValueError, match=r"cannot read 1 of 20 .* 7\.png \(it is none of BMP"):
        next(folder(tmp_path, num_test=0, num_validation=0).stream())
    assert not started
    (tmp_path / "7.png").unlink()
    os.mkfifo(tmp_path / "7.png")
    with pytest.raises(ValueError, match=r"cannot read 1 of 20 .* 7\.png"):
        next(folder(tmp_path, num_test=0, num_validation=0).stream())


def test_all_images_are_looked_at_before_the_first_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("train", "test"):
        for i in range(9):
            write_png(tmp_path / part / f"{i}.png", level=i, mode="RGB")
    data = folder(tmp_path, num_validation=2, resident=False)
    with caplog.at_level("INFO", logger="flexgen"):
        data.stream()
    assert caplog.messages == [
        f"{tmp_path}, {part} images: {line}"
        for part in ("train", "test")
        for line in (
            "resized to 8×8 pixels, cut about the centre to that aspect: 9 of 9 images (12×10)",
            "turned to grey: 9 of 9 images (RGB)",
        )
    ]
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "test" / "9.tif")
    with pytest.raises(ValueError, match=r"cannot read 1 of 10 .*9.tif .*floats"):
        folder(tmp_path, num_validation=2, resident=False).stream()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_hides_under_transparent_pixels_is_not_seen(
    tmp_path: Path, mode: str, channels: int
) -> None:
    for i, hidden in enumerate([(0, 0, 0), (255, 0, 255)] * 2):
        picture = np.full((8, 8, 4), (*hidden, 0), np.uint8)
        picture[2:6, 2:6] = (200, 200, 200, 255)
        image = Image.fromarray(picture)
        if mode == "P":
            image = Image.fromarray(picture[..., 3] // 255, "L").convert("P")
            image.putpalette([*hidden, 200, 200, 200])
            image.info["transparency"] = 0
        (image if mode == "P" else image.convert(mode)).save(tmp_path / f"{i}.png")
    x, _ = folder(tmp_path, shape=(channels, 8, 8), num_test=0, num_validation=0).split("train")
    expected = torch.ones(channels, 8, 8)
    expected[:, 2:6, 2:6] = 200 / 127.5 - 1
    torch.testing.assert_close(x, expected.expand_as(x))


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*/none; set path=…"):
        folder(tmp_path / "none").setup()
    with pytest.raises(ValueError, match=r"no images below .*; set path=…"):
        folder(tmp_path).setup()
    write_png(tmp_path / "train" / "0.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="folder has no test images below"):
        folder(tmp_path).setup()


# --- what is refused at once ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mnits"}, "got 'mnits'; nearest: 'mnist'"),
        ({"shape": (8, 8)}, r"`shape` must be .* got \(8, 8\)"),
        ({"shape": (2, 8, 8)}, r"`shape` must be .* got \(2, 8, 8\)"),
        ({"name": "folder"}, r"`root` must be the folder of the images, got None; give path=…"),
        ({"range": None}, r"`range` must be a pair for images, got None; set `data.range"),
        ({"range": (1, -1)}, r"`range` must be \(low, high\) with low < high, got \(1.0, -1.0\)"),
        ({"range": (0, float("nan"))}, "`range` must be"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, got 0"),
        ({"batch_size": 1.5}, "`batch_size` must be a whole number"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
        ({"num_validation": -1}, "`num_validation` must be a whole number"),
        ({"num_workers": -1}, "`num_workers` must be a whole number"),
        ({"resident": "maybe"}, "`resident` must be one of auto, true, false, got 'maybe'"),
        ({"download": True}, "digits cannot be downloaded; set `data.download=false`"),
    ],
)
def test_bad_arguments_are_refused_at_construction(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**{"name": "digits", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1258}, r"at most the 1257 training examples .*`data.batch_size=1257`"),
        ({"num_test": 1797}, r"`num_test` must be less than the 1797 images"),
        ({"num_validation": 1437}, r"`num_validation` must be less than the 1437 images"),
    ],
)
def test_sizes_that_leave_too_little_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData("digits", **options).setup()


def test_bad_requests_are_refused() -> None:
    data = ImageData("digits")
    with pytest.raises(ValueError, match=r"`n` must be in \[1, 360\], .* got 361"):
        data.split("test", n=361)
    with pytest.raises(ValueError, match="must be one of train, validation, test, got 'val'"):
        data.split("val")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`position` must be a whole number"):
        data.stream(position=-1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 1, 4, 4), "must be uint8 .*, got torch.float32; scale them"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"must have shape .* got \(3, 4, 4\)"),
        (torch.zeros(3, 2, 4, 4, dtype=torch.uint8), r"must have shape .* got \(3, 2, 4, 4\)"),
    ],
)
def test_pixels_of_another_kind_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pixels(x, None, "mine")


def test_pixels_are_resized_like_files() -> None:
    ramp = torch.arange(0, 200, 10, dtype=torch.uint8)
    x = torch.stack((ramp.expand(3, 20, 20), ramp.view(20, 1).expand(3, 20, 20)))
    small = decode(Pixels(x, None, "mine"), torch.arange(2), (3, 10, 10))
    mean = torch.nn.functional.avg_pool2d(x.float(), 2)
    assert small.shape == (2, 3, 10, 10)
    assert (small - mean)[
        :, :, 1:-1, 1:-1
    ].abs().max() <= 1  # but for the edges, where the filter is cut


def test_lsun_without_lmdb_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val"):
        (tmp_path / "lsun" / f"tower_{part}_lmdb").mkdir(parents=True)
        (tmp_path / "lsun" / f"tower_{part}_lmdb" / "data.mdb").touch()
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(ValueError, match="pip install lmdb"):
        ImageData("lsun_tower", (3, 8, 8), root=tmp_path).setup()


def test_lsun_reads_its_databases(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    for part, n, start in (("train", 20, 0), ("val", 5, 100)):
        where = tmp_path / "lsun" / f"kitchen_{part}_lmdb"
        where.mkdir(parents=True)
        with lmdb.open(str(where)) as env, env.begin(write=True) as transaction:
            for i in range(n):
                file = io.BytesIO()
                Image.new("RGB", (30, 20), (start + i,) * 3).save(file, "WEBP", lossless=True)
                transaction.put(f"{i:040x}".encode(), file.getvalue())
    data = ImageData(
        "lsun_kitchen", (3, 8, 8), root=tmp_path, num_validation=4, batch_size=5, num_workers=2,
        resident=False,
    )  # fmt: skip
    assert [data.size(part) for part in PARTS] == [16, 4, 5]
    assert levels(data, "test").tolist() == list(range(100, 105))
    workers, resident = data.stream(), ImageData(
        "lsun_kitchen", (3, 8, 8), root=tmp_path, num_validation=4, batch_size=5
    ).stream()  # fmt: skip
    for _ in range(7):
        assert torch.equal(next(workers).x, next(resident).x)


def test_torchvision_is_imported_only_where_it_is_used() -> None:
    for path in Path(flexgen.data.__path__[0]).glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not {"torchvision", "sklearn", "lmdb"} & set(ast.dump(node).split("'"))
