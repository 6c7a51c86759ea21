"""Folders of images and arrays in files, read by index and brought to one shape."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flexgen.data.readers import ArrayFile, ImageFolder

RANGE = (-1.0, 1.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 6, 5), dtype=np.uint8)
SCALED = torch.from_numpy(PIXELS).float().unsqueeze(1) / 127.5 - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / "images"
    (where / "deep").mkdir(parents=True)
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(where / ("deep" if i > 5 else "") / f"{i}.png")
    return where


def test_a_folder_is_read_in_the_order_of_its_names(folder: Path) -> None:
    reader = ImageFolder(folder, (1, 6, 5), RANGE)
    assert reader.names == [f"{i}.png" for i in range(6)] + [f"deep/{i}.png" for i in (6, 7, 8)]
    index = torch.tensor([7, 0])
    torch.testing.assert_close(reader.read(index), SCALED[index])
    assert reader.check() == []


def test_a_folder_says_what_it_converts_and_leaves_out(folder: Path) -> None:
    Image.new("RGB", (20, 12)).save(folder / "colour.jpg")
    (folder / "notes.txt").write_text("no image")
    reader = ImageFolder(folder, (1, 6, 5), RANGE)
    assert reader.read(torch.arange(10)).shape == (10, 1, 6, 5)
    resized, converted, left_out = reader.check()
    assert "resized to 5×6" in resized
    assert "1 of 10 images (20×12)" in resized
    assert converted == "turned to grey: 1 of 10 images (RGB)"
    assert "notes.txt" in left_out
    with pytest.raises(ValueError, match=r"resize=false.*got 20×12 in .*colour.jpg"):
        ImageFolder(folder, (1, 6, 5), RANGE, resize=False).check()


def test_a_name_that_is_no_utf8_is_read_and_shown(folder: Path) -> None:
    stamp = ImageFolder(folder, (1, 6, 5), RANGE).stamp(torch.arange(9))
    named = folder / "deep" / os.fsdecode(b"caf\xe9.png")
    (folder / "deep" / "8.png").rename(named)
    named.with_suffix(".txt").touch()
    reader = ImageFolder(folder, (1, 6, 5), RANGE)
    assert reader.names is not None
    assert reader.names[8] == r"deep/caf\xe9.png"
    torch.testing.assert_close(reader.read(torch.tensor([8])), SCALED[8:])
    assert reader.stamp(torch.arange(9)) != stamp
    assert reader.check() == [r"left out, not named as images: 1 (deep/caf\xe9.txt)"]
    named.write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read 1 of 9 images .*caf\\xe9.png"):
        ImageFolder(folder, (1, 6, 5), RANGE).check()


def test_a_folder_that_is_linked_is_read_and_left_out_alike(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "elsewhere" / "0.png")
    (tmp_path / "elsewhere" / "notes.txt").touch()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "linked" / "round").symlink_to(folder)
    reader = ImageFolder(folder, (1, 6, 5), RANGE)
    assert len(reader) == 10
    assert reader.check() == ["left out, not named as images: 1 (linked/notes.txt)"]


def test_transparent_and_deep_images_are_counted(folder: Path) -> None:
    Image.new("LA", (5, 6)).save(folder / "clear.png")
    Image.fromarray(PIXELS[0].astype(np.uint16) * 257).save(folder / "deep" / "9.png")
    reader = ImageFolder(folder, (1, 6, 5), RANGE)
    assert reader.check() == [
        "turned to grey: 1 of 11 images (LA)",
        "transparent, put on white: 1 of 11 images",
        "of 16 bits, scaled to 8: 1 of 11 images",
    ]
    torch.testing.assert_close(reader.read(torch.tensor([10])), SCALED[:1])


def test_all_images_that_cannot_be_read_are_named_or_left_out(folder: Path) -> None:
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "deep" / "7.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 9 images .*: 3.png \(.*; deep/7.png \(.*unusable="):
        ImageFolder(folder, (1, 6, 5), RANGE).check()
    reader = ImageFolder(folder, (1, 6, 5), RANGE, unusable="leave_out")
    kept = torch.tensor([0, 1, 2, 4, 5, 6, 8])
    torch.testing.assert_close(reader.read(torch.arange(7)), SCALED[kept])
    assert reader.check()[0].startswith("left out, cannot be read: 2 of 9: 3.png")


def test_a_file_that_is_no_image_is_named(folder: Path) -> None:
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    reader = ImageFolder(folder, (1, 6, 5), RANGE)
    with pytest.raises(ValueError, match=r"cannot read the image .*3.png"):
        reader.read(torch.arange(9))
    (folder / "3.png").write_text("no image at all")
    with pytest.raises(ValueError, match=r"cannot read 1 of 9 images .*3.png"):
        reader.check()


@pytest.mark.parametrize("reader", [ImageFolder, ArrayFile])
def test_a_stamp_changes_with_the_files(folder: Path, tmp_path: Path, reader: type) -> None:
    path = folder
    if reader is ArrayFile:
        np.save(path := tmp_path / "x.npy", PIXELS)
    found = reader(path, (1, 6, 5), RANGE)
    before = found.stamp(torch.arange(3))
    assert before == reader(path, (1, 6, 5), RANGE).stamp(torch.arange(3))
    if reader is ArrayFile:
        np.save(path, PIXELS[:4])
    else:
        Image.fromarray(PIXELS[:, :, 0]).save(path / "2.png")
        assert found.stamp(torch.arange(3, 6)) == reader(path, (1, 6, 5), RANGE).stamp(
            torch.arange(3, 6)
        )
    assert found.stamp(torch.arange(3)) != before


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: p.write_text("x"), "must be a folder of images, got the file"),
        (lambda p: None, "there is no folder"),
        (lambda p: p.mkdir(), "no images below"),
    ],
)
def test_folders_that_are_none(tmp_path: Path, make: object, expected: str) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        ImageFolder(tmp_path / "x", (1, 6, 5), RANGE)


def test_a_folder_needs_a_generator_of_images(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a generator of images.*\(7,\)"):
        ImageFolder(folder, (7,), RANGE)


def save(path: Path, x: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(x), path)
    elif path.suffix == ".safetensors":
        save_file({"x": torch.from_numpy(x)}, path)
    else:
        (np.savez if "plain" in path.stem else np.savez_compressed)(path, x=x)
    return path


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "plain.npz", "x.pt", "x.safetensors"])
@pytest.mark.parametrize("layout", ["grey", "first", "last"])
def test_arrays_of_every_format_and_layout(tmp_path: Path, name: str, layout: str) -> None:
    x = {"grey": PIXELS, "first": PIXELS[:, None], "last": PIXELS[..., None]}[layout]
    reader = ArrayFile(save(tmp_path / name, np.ascontiguousarray(x)), (1, 6, 5), RANGE)
    assert len(reader) == 9
    for index in (torch.arange(9), torch.arange(2, 5), torch.tensor([8, 1, 1])):
        torch.testing.assert_close(reader.read(index), SCALED[index])
    assert reader.check() == []


def test_floats_are_taken_as_they_are_or_moved(tmp_path: Path) -> None:
    unit = torch.rand(7, 1, 6, 5)
    path = save(tmp_path / "x.npy", unit.double().numpy())
    torch.testing.assert_close(ArrayFile(path, (1, 6, 5), RANGE).read(torch.arange(7)), unit)
    moved = ArrayFile(path, (1, 6, 5), RANGE, data_range=(0, 1))
    torch.testing.assert_close(moved.read(torch.arange(7)), unit * 2 - 1)
    assert moved.check() == []
    (note,) = ArrayFile(path, (1, 6, 5), RANGE).check()
    assert "data_range=[0,1]" in note
    with pytest.raises(ValueError, match=r"must lie in range=\[0,0.5\].*data_range"):
        ArrayFile(path, (1, 6, 5), (0, 0.5)).check()


def test_arrays_are_brought_to_the_generators_size_and_channels(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", np.full((3, 12, 20, 3), 255, np.uint8))
    reader = ArrayFile(path, (1, 6, 5), RANGE)
    torch.testing.assert_close(reader.read(torch.arange(3)), torch.ones(3, 1, 6, 5))
    resized, converted = reader.check()
    assert "resized to 5×6" in resized
    assert "grey" in converted
    with pytest.raises(ValueError, match="resize=false"):
        ArrayFile(path, (1, 6, 5), RANGE, resize=False)


def test_a_generator_that_makes_channels_last_wants_them_so(tmp_path: Path) -> None:
    x = np.zeros((4, 3, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"permute them, x.permute\(0, 2, 3, 1\)"):
        ArrayFile(save(tmp_path / "x.npy", x), (8, 8, 3), RANGE)
    last = save(tmp_path / "last.npy", x.transpose(0, 2, 3, 1).copy())
    assert ArrayFile(last, (8, 8, 3), RANGE).read(torch.arange(4)).shape == (4, 8, 8, 3)


def test_vectors_are_read_for_a_generator_of_vectors(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(4, 7)).astype(np.float32) * 5
    reader = ArrayFile(save(tmp_path / "x.npy", x), (7,), RANGE)
    torch.testing.assert_close(reader.read(torch.arange(4)), torch.from_numpy(x))
    assert reader.check() == []
    with pytest.raises(ValueError, match=r"must have the shape \(8,\).*got \(7,\)"):
        ArrayFile(tmp_path / "x.npy", (8,), RANGE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_name_their_example(tmp_path: Path, bad: float) -> None:
    x = np.zeros((5, 1, 6, 5), np.float32)
    x[3, 0, 2, 2] = bad
    reader = ArrayFile(save(tmp_path / "x.npy", x), (1, 6, 5), RANGE)
    with pytest.raises(ValueError, match=r"example 3 of .*x.npy holds NaN or infinity"):
        reader.check()
    reader.read(torch.arange(3))


@pytest.mark.parametrize(
    ("dtype", "most"), [("uint8", 255), ("uint16", 65535), ("bool", 1), (">u2", 65535)]
)
@pytest.mark.parametrize("name", ["x.npy", "plain.npz"])
def test_the_type_of_an_array_says_what_white_is(
    tmp_path: Path, name: str, dtype: str, most: int
) -> None:
    x = np.asfortranarray((np.arange(120).reshape(4, 6, 5) % 2 * most).astype(dtype))
    reader = ArrayFile(save(tmp_path / name, x), (1, 6, 5), RANGE)
    assert reader.check() == []
    torch.testing.assert_close(
        reader.read(torch.arange(4)).flatten(), torch.arange(120) % 2 * 2.0 - 1
    )


def test_whole_numbers_have_no_white_of_their_own(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", PIXELS.astype(np.int64))
    with pytest.raises(ValueError, match=r"must lie in range=\[-1,1\], got 0 to .*data_range"):
        ArrayFile(path, (1, 6, 5), RANGE).check()
    reader = ArrayFile(path, (1, 6, 5), RANGE, data_range=(0, 255))
    torch.testing.assert_close(reader.read(torch.arange(9)), SCALED)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "plain.npz", "x.pt", "x.safetensors"])
def test_an_array_cut_short_is_damaged(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, PIXELS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read .*cut short"):
        ArrayFile(path, (1, 6, 5), RANGE).check()


def test_arrays_that_are_none(tmp_path: Path) -> None:
    def refused(path: Path, expected: str, key: str | None = None) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=expected):
            ArrayFile(path, (1, 6, 5), RANGE, key=key)

    refused(tmp_path / "x.npy", "there is no file")
    refused(tmp_path, "got the folder")
    (tmp_path / "x.csv").write_text("1,2")
    refused(tmp_path / "x.csv", "must end in .npy, .npz, .pt or .safetensors.*data=table")
    np.save(tmp_path / "o.npy", np.array([{}, {}]), allow_pickle=True)
    refused(tmp_path / "o.npy", "cannot read")
    refused(save(tmp_path / "i.npy", PIXELS.astype(complex)), "must hold real numbers")
    refused(save(tmp_path / "e.npy", PIXELS[:0]), "at least one example")
    refused(save(tmp_path / "v.npy", PIXELS.reshape(9, -1)), "must hold images to bring")
    np.savez(tmp_path / "two.npz", a=PIXELS, b=PIXELS)
    refused(tmp_path / "two.npz", "holds the arrays a, b; say which with data.key=NAME")
    refused(tmp_path / "two.npz", "arrays a, b, not 'c'", key="c")
    assert len(ArrayFile(tmp_path / "two.npz", (1, 6, 5), RANGE, key="b")) == 9


PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (6, 5, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "mode", "options", "told"),
    [
        ("x.PNG", "P", {}, ["turned to colour: 1 of 1 images (P)"]),
        ("x.png", "1", {}, ["turned to colour: 1 of 1 images (1)"]),
        ("x.tif", "CMYK", {}, ["turned to colour: 1 of 1 images (CMYK)"]),
        ("a\nb, c=d 'e'.bmp", "RGB", {}, []),
        (
            "x.gif", "RGB", {"save_all": True, "append_images": [PICTURE.rotate(180)]},
            [
                "turned to colour: 1 of 1 images (P)",
                "of several pictures, the first taken: 1 of 1 images",
            ],
        ),
        ("x.jpg", "RGB", {"exif": 3}, ["turned upright, as the camera says: 1 of 1 images"]),
    ],
)  # fmt: skip
def test_pictures_of_every_kind_are_read_and_told(
    tmp_path: Path, name: str, mode: str, options: dict[str, object], told: list[str]
) -> None:
    picture = PICTURE.convert(mode)
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = options["exif"]
        options = {"exif": exif, "quality": 100, "subsampling": 0}
        picture = picture.rotate(180)
    picture.save(tmp_path / name, **options)
    reader = ImageFolder(tmp_path, (3, 6, 5), RANGE)
    assert reader.check() == told
    found = reader.read(torch.arange(1))[0]
    expected = torch.from_numpy(np.array(PICTURE.convert(mode).convert("RGB"))).permute(2, 0, 1)
    assert (found - (expected.float() / 127.5 - 1)).abs().mean() < 0.1
