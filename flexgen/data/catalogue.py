"""The table of image data sets: one entry each, and the few lines that look an entry up.

To add a data set, add an entry (and an origin, if none of those fits) and a YAML file.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from flexgen.checks import first_line
from flexgen.data import datasets
from flexgen.data.binarised import Larochelle
from flexgen.data.datasets import Origin, Parts
from flexgen.data.sources import Shape


@dataclass(frozen=True)
class Spec:
    """What is known of a data set before it is read.

    Args:
        shape: native (channels, height, width); None where images differ in size.
        num_classes: number of labels over all parts, or None (no labels, or known when read).
        splits: official parts and their sizes.
        origin: how to read them.
        num_validation: images cut from the training part for validation; 0 where validation has
            an official part, None for a tenth, of fewer than 1,000 a fifth, at most 100.
        num_test: images cut for testing where there is no official part; None as for validation.
        files: paths inside `root` that must be there.
        crop: edge of a square cut from the centre before resizing, in pixels.
        licence: terms of use, in a few words.
        notes: what else to know.
        binarised: entry of the published static binarisation of this set, where there is one.
    """

    shape: Shape | None
    num_classes: int | None
    splits: str
    origin: Origin
    num_validation: int | None
    num_test: int | None = None
    files: tuple[str, ...] = ()
    crop: int | None = None
    licence: str = ""
    notes: str = ""
    binarised: str | None = None


def _idx(dataset: str) -> tuple[str, ...]:
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    return tuple(f"{dataset}/raw/{part}-{kind}" for part in ("train", "t10k") for kind in kinds)


_TRAIN_TEST = {"train": {"train": True}, "test": {"train": False}}
_CELEBA = {"train": "train", "validation": "valid", "test": "test"}
_LAROCHELLE = (
    ("train", "binarized_mnist/binarized_mnist_train.amat", 50_000),
    ("validation", "binarized_mnist/binarized_mnist_valid.amat", 10_000),
    ("test", "binarized_mnist/binarized_mnist_test.amat", 10_000),
)
_SMALL = ("omniglot/images_background_small1.zip", "omniglot/images_background_small2.zip")

# fmt: off
_LSUN = (
    "bedroom", "bridge", "church_outdoor", "classroom", "conference_room", "dining_room", "kitchen",
    "living_room", "restaurant", "tower",
)
SPECS: dict[str, Spec] = {
    "digits": Spec(
        (1, 8, 8), 10, "none: 1,797 scans in all", datasets.Digits(), num_validation=180,
        num_test=360, licence="CC BY 4.0",
        notes="inside scikit-learn; the test set of UCI's optical recognition digits",
    ),
    "mnist": Spec(
        (1, 28, 28), 10, "60,000 train, 10,000 test", datasets.Torchvision("MNIST", _TRAIN_TEST),
        num_validation=5_000, files=_idx("MNIST"), licence="CC BY-SA 3.0",
        binarised="mnist_larochelle",
    ),
    "mnist_larochelle": Spec(
        (1, 28, 28), None,
        "50,000 train, 10,000 validation, 10,000 test; binary, without labels",
        Larochelle(_LAROCHELLE), num_validation=0,
        files=tuple(file for _, file, _ in _LAROCHELLE), licence="CC BY-SA 3.0",
        notes="the static binarisation of Larochelle & Murray 2011",
    ),
    "fashion_mnist": Spec(
        (1, 28, 28), 10, "60,000 train, 10,000 test",
        datasets.Torchvision("FashionMNIST", _TRAIN_TEST), num_validation=5_000,
        files=_idx("FashionMNIST"), licence="MIT",
    ),
    "omniglot": Spec(
        (1, 105, 105), 1623,
        "background 19,280 (964 characters) train, evaluation 13,180 (659) test",
        datasets.Omniglot(), num_validation=1_000,
        files=("omniglot-py/images_background", "omniglot-py/images_evaluation"), licence="MIT",
        notes="inverted to white on black; no character is in both parts",
    ),
    "omniglot_small": Spec(
        (1, 105, 105), 242,
        "small background set 1, 2,720 (136 characters) train; unseen alphabets of set 2, "
        "2,120 (106) test",
        datasets.OmniglotSmall(_SMALL), num_validation=200, files=_SMALL, licence="MIT",
        notes="inverted to white on black; github.com/brendenlake/omniglot, folder python",
    ),
    "cifar10": Spec(
        (3, 32, 32), 10, "50,000 train, 10,000 test", datasets.Torchvision("CIFAR10", _TRAIN_TEST),
        num_validation=5_000, licence="research use",
        files=("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"),
    ),
    "svhn": Spec(
        (3, 32, 32), 10, "73,257 train, 26,032 test; the extra 531,131 are not read",
        datasets.Torchvision("SVHN", {p: {"split": p} for p in ("train", "test")}, folder="SVHN"),
        num_validation=5_000, files=("SVHN/train_32x32.mat", "SVHN/test_32x32.mat"),
        licence="non-commercial use",
    ),
    "celeba": Spec(
        (3, 218, 178), None, "162,770 train, 19,867 validation, 19,962 test",
        datasets.Torchvision("CelebA", {part: {"split": name} for part, name in _CELEBA.items()}),
        num_validation=0, files=("celeba/img_align_celeba", "celeba/list_eval_partition.txt"),
        crop=118, licence="non-commercial research use",
        notes="the aligned images; the 118 centre crop, then resized to 64, frames the face",
    ),
    "folder": Spec(
        None, None, "subfolders train and test (and validation) where present, else none",
        datasets.Folder(), num_validation=None, notes="`root` is the folder of images itself",
    ),
} | {
    f"lsun_{category}": Spec(
        None, None, "train; validation of 300 images, used as test", datasets.Lsun(category),
        num_validation=5_000, licence="research use",
        files=tuple(f"lsun/{category}_{part}_lmdb/data.mdb" for part in ("train", "val")),
        notes="unpack the published zip files into lsun/; needs the package lmdb",
    )
    for category in _LSUN
}
# fmt: on


def find(name: str) -> Spec:
    """The entry of a data set.

    Raises:
        ValueError: if there is none; the message gives the nearest name.
    """
    if name in SPECS:
        return SPECS[name]
    near = difflib.get_close_matches(str(name), SPECS, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"`name` must be a data set of flexgen.data.SPECS, got {name!r}; nearest: {near!r}"
    )


def fetch(name: str, root: Path) -> None:
    """Download a data set into `root`, unless it is there.

    Raises:
        ValueError: if it cannot be had by download.
        ConnectionError: if the download fails.
    """
    origin = find(name).origin
    if not origin.has_fetch:
        raise ValueError(f"{name} cannot be downloaded; set `data.download=false`")
    try:
        origin.fetch(root)
    except Exception as error:  # torchvision and the network raise many kinds
        raise ConnectionError(
            f"could not download {name} into {root} ({first_line(error)}); check the network "
            "and the space left, or bring the files there by hand"
        ) from error


def read(name: str, root: Path) -> Parts:
    """The official parts of a data set.

    Raises:
        FileNotFoundError: if a file is missing; the message says what to do.
        ValueError: if a file is corrupt.
    """
    spec = find(name)
    if missing := [file for file in spec.files if not (root / file).exists()]:
        raise FileNotFoundError(
            f"{name} is not there: no {root / missing[0]}; {_remedy(name, root)}"
        )
    try:
        return spec.origin.read(root)
    except Exception as error:  # a file cut short breaks torchvision in many ways
        told = isinstance(error, FileNotFoundError | ValueError)
        if told and not isinstance(spec.origin, datasets.Torchvision):
            raise
        again = ", `data.download=true`" if spec.origin.has_fetch else ""
        raise ValueError(
            f"the files of {name} under {root} are cut short or corrupt ({first_line(error)}); "
            f"delete them and fetch them again{again}"
        ) from error


def _remedy(name: str, root: Path) -> str:
    where = "set `paths.data_dir` or the variable FLEXGEN_DATA to the folder that holds it"
    if SPECS[name].origin.has_fetch:
        where += ", or `data.download=true` to fetch it"
    elif SPECS[name].notes:
        where += f" ({SPECS[name].notes})"
    if name == "omniglot" and all((root / file).exists() for file in _SMALL):
        where += "; the two small background sets are here: `data=omniglot_small`"
    return where
