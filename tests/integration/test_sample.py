"""`flexgen sample`: by another prior, between images, from class to class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from flexgen.analysis.latent_space import LatentSpace
from flexgen.cli import main
from flexgen.codes import base_space
from flexgen.runs.run import open_run
from flexgen.training import isolated_rng
from tests.conftest import REFIT, SMALL

DIGITS = (
    "data=digits", "latent_dim=5", "network.generator.hidden_features=[16]",
    "network.critic.hidden_features=[16]", "callbacks=[reversal,checkpoint]",
    "callbacks.reversal.n=60", "callbacks.reversal.options.steps=5",
    "callbacks.reversal.num_resamples=40", "trainer=cpu", "steps=3", "report=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on the plane, one that drew from a box, one with a learned prior, one on images."""
    folder = tmp_path_factory.mktemp("runs")
    ring = (*SMALL, "report=false", "steps=22")
    words: dict[str, tuple[str, ...]] = {
        "ring": ring,
        "box": (*ring, "prior=uniform"),
        "learned": (*ring, *REFIT),
        "digits": DIGITS,
    }
    for name, overrides in words.items():
        main(["train", *overrides, f"paths.run_dir={folder / name}"])
    return {name: folder / name for name in words}


def sample(
    run: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors that a command wrote, and all its files."""
    capsys.readouterr()
    main(["sample", f"run={run}", *words])
    files = [Path(line.partition(": ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert all(file.is_file() for file in files)
    return load_file(files[0]), files


def refused(run: Path, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["sample", f"run={run}", *words])
    return str(stopped.value.code)


def pixels(file: Path) -> Tensor:
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("L")))


def test_another_prior_draws_other_samples_into_other_files(runs: Any, capsys: Any) -> None:
    own, files = sample(runs["ring"], capsys, "n=9")
    assert [file.name for file in files] == [
        f"step=00000022_seed=0_n=9.{kind}" for kind in ("safetensors", "png")
    ]
    opened = open_run(runs["ring"])
    with isolated_rng(0):
        assert torch.equal(own["x"], opened.model.sample(9))
    seen = {files[0]}
    for words in (
        ["prior=normal", "prior.scale=3"],
        ["prior=masked", "prior@prior.base=normal"],
        ["prior=gaussian", "n_fit=50"],
        ["prior=langevin", "prior.steps=3"],
    ):
        other, files = sample(runs["ring"], capsys, "n=9", *words)
        assert other["x"].shape == (9, 2)
        assert not torch.equal(other["x"], own["x"])
        assert files[0].stem == "_".join(["step=00000022_seed=0_n=9", *words])
        seen.add(files[0])
    assert len(seen) == 5
    same, _ = sample(runs["ring"], capsys, "n=9", "prior=normal")
    assert torch.equal(same["x"], own["x"])  # the run's own prior, by its name


@pytest.mark.parametrize("path", ["slerp", "linear"])
def test_paths_lead_from_image_to_image(runs: Any, capsys: Any, path: str) -> None:
    words = (f"interpolate={path}", "pairs=4", "frames=5")
    found, files = sample(runs["digits"], capsys, *words)
    assert found["z"].shape == (4, 5, 5)
    assert found["x"].shape == (4, 5, 1, 8, 8)
    opened = open_run(runs["digits"])
    real, _ = opened.data.split("validation")
    assert torch.equal(real[found["index"]], found["real"])
    torch.testing.assert_close(opened.model.decode(found["z"][1]), found["x"][1])
    # The ends are codes that the run's own loop found, from about 0.
    loss = 0.5 * (found["x"][:, [0, -1]] - found["real"]).square().flatten(2).sum(-1)
    torch.testing.assert_close(loss, found["loss"])
    # Each row shows the two images, and between them their path: each 8 pixels, five times.
    picture = pixels(files[1])
    assert picture.shape == (4 * 42 + 2, 7 * 42 + 2)
    for x, left in ((found["real"][0, 0], 2), (found["real"][0, 1], 6 * 42 + 2)):
        shown = picture[2:42:5, left : left + 40 : 5] / 127.5 - 1
        torch.testing.assert_close(shown, x[0], atol=0.01, rtol=0)


def test_with_a_learned_prior_paths_are_those_of_its_base(runs: Any, capsys: Any) -> None:
    found, _ = sample(runs["learned"], capsys, "interpolate=slerp", "pairs=3", "frames=3")
    opened = open_run(runs["learned"])
    assert opened.model.prior.in_use == 1
    through, _ = base_space(opened.model)
    with torch.no_grad(), opened.model.evaluating():
        torch.testing.assert_close(through(found["z"].flatten(0, 1)), found["x"].flatten(0, 1))
    assert not torch.allclose(opened.model.decode(found["z"][0]), found["x"][0])


def test_points_in_the_plane_are_scattered(runs: Any, capsys: Any) -> None:
    found, files = sample(runs["ring"], capsys, "interpolate=slerp")
    assert found["x"].shape == (8, 9, 2)
    assert len(files) == 2


def test_in_a_box_paths_are_straight_and_stay_inside(runs: Any, capsys: Any) -> None:
    assert "set `interpolate=linear`" in refused(runs["box"], "interpolate=slerp")
    found, _ = sample(runs["box"], capsys, "interpolate=linear")
    assert found["z"].abs().max() <= 1


def test_classes_are_averaged_and_exchanged(runs: Any, capsys: Any) -> None:
    found, files = sample(runs["digits"], capsys, "arithmetic=true", "per_class=3")
    opened = open_run(runs["digits"])
    images, labels = opened.data.split("validation")
    index, classes = found["index"], found["classes"]
    assert torch.equal(labels[index], classes.unsqueeze(1).expand(10, 4))
    assert len(index.unique()) == 40
    torch.testing.assert_close(found["real_mean"], images[index[:, 1:]].mean(1))
    assert torch.equal(found["real"], images[index[:, 0]])
    torch.testing.assert_close(opened.model.decode(found["z_mean"]), found["x_mean"])
    torch.testing.assert_close(found["z"][:, 1:].mean(1), found["z_mean"])
    torch.testing.assert_close(opened.model.decode(found["z"][:, 0]), found["x"])
    moved, z, mean = found["z_moved"], found["z"][:, 0], found["z_mean"]
    torch.testing.assert_close(moved[2, 7], z[2] - mean[2] + mean[7])
    torch.testing.assert_close(moved[4, 4], z[4])
    torch.testing.assert_close(found["x_moved"][2, 7], opened.model.decode(moved[2:3, 7])[0])
    shapes = [pixels(file).shape for file in files[1:]]
    assert shapes == [(2 * 42 + 2, 10 * 42 + 2), (10 * 42 + 2, 12 * 42 + 2)]


def test_codes_moved_from_class_to_class_stay_in_a_box(runs: Any) -> None:
    opened = open_run(runs["digits"])
    opened.model.prior.current.support = (-1e-3, 1e-3)
    space = LatentSpace(opened, {"method": "adam", "steps": 5}, seed=0)
    assert space.class_arithmetic(3)["z_moved"].abs().max() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("run", "words", "expected"),
    [
        ("ring", ["interpolate=cubic"], "`interpolate` must be slerp or linear, got 'cubic'"),
        ("ring", ["interpolate=slerp", "pairs=0"], "`pairs` must be a whole number"),
        ("ring", ["interpolate=slerp", "frames=1"], "`frames` must be a whole number of"),
        ("ring", ["interpolate=slerp", "pairs=101"], "`pairs` must be at most 100"),
        ("ring", ["interpolate=slerp", "prior=uniform"], "give one of prior=, interpolate="),
        ("ring", ["interpolate=slerp", "arithmetic=true"], "got interpolate and arithmetic"),
        ("ring", ["arithmetic=true"], "`arithmetic` is for images with classes"),
        ("digits", ["arithmetic=true", "per_class=90"], "`per_class` must be at most"),
        ("ring", ["n=2.5"], "`n` must be a whole number of at least 1, got 2.5"),
        ("ring", ["sample_seed=abc"], "`sample_seed` must be a whole number"),
        ("ring", ["prior=norml"], "did you mean `prior=normal`"),
        ("ring", ["prior=normal", "prior.latent_dim=3"], "event shape must be (2,)"),
        ("ring", ["prior=gaussian", "n_fit=0"], "`n_fit` must be a whole number of"),
    ],
)
def test_mistakes(runs: Any, run: str, words: list[str], expected: str) -> None:
    told = refused(runs[run], *words)
    assert expected in told
    assert "\n" not in told
