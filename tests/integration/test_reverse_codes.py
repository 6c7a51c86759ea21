"""`flexgen reverse generator=…`: W and W+, noise, labels, masks, losses and tuned weights."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flexgen.metrics import load_or_train_classifier

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import generators

Run = Callable[..., Path]
STYLE = ("generator=generators:style", "trust=true", "latent_dim=4", "data=array", "path=x.npy")
CPU = ("device=cpu", "range=[-1,1]")


@pytest.fixture
def work(flexgen: Run, tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = generators.style(torch.randn(6, 4, generator=draw))
    x += 0.1 * torch.randn(x.shape, generator=draw)
    np.save(tmp_path / "x.npy", x.clamp(-1, 1).numpy())
    return tmp_path


def figure(told: str, name: str) -> list[float]:
    line = next(line for line in told.splitlines() if line.startswith(name))
    return [float(number) for number in re.findall(r"-?\d[\d.e+-]*", line.partition(": ")[2])]


def test_w_plus_is_at_least_as_good_as_w_and_errors_stand_on_the_page(
    flexgen: Run, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flexgen("reverse", *STYLE, *CPU, "space=w", "layers=3", "slope=5", "out=w", "own=8")
    told = capsys.readouterr().out
    flexgen("reverse", *STYLE, *CPU, "space=w+", "layers=3", "out=plus", "own=0")
    one, each = (load_file(f"{out}/codes.safetensors") for out in ("w", "plus"))
    assert (one["z"].shape, each["z"].shape) == ((6, 6), (6, 18))
    assert each["loss"].mean() < one["loss"].mean()
    mean, _, _, own = figure(told, "SSIM")[:2] + figure(told, "SSIM")[-2:]
    assert mean == pytest.approx(float(one["ssim"].mean()), rel=1e-3)
    assert own > mean  # its own samples are without noise
    page = Path("w/pairs.html").read_text()
    assert page.count("SSIM 0.") == 6
    assert page.count(" dB<br>") == 6


def test_posterior_draws_in_w_with_noise(
    flexgen: Run, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*STYLE, *CPU, "space=w", "layers=3", "noise=noise_const", "own=2", "n=3")
    chains = ("posterior.num_temperatures=20", "posterior.chains=2", "posterior.draws=3")
    with pytest.raises(SystemExit) as stopped:
        flexgen("reverse", *words, *chains)
    assert "give posterior.sigma=0.1" in str(stopped.value.code)
    with pytest.raises(SystemExit) as stopped:
        flexgen("reverse", *words, "posterior.sigma=0.1", "reverse.loss=l1")
    assert "do not go with reverse.loss" in str(stopped.value.code)
    flexgen("reverse", *words, *chains, "posterior.sigma=0.1")
    told, found = capsys.readouterr().out, load_file("codes/codes.safetensors")
    assert found["z"].shape == (3, 6 + 144)
    assert found["states"].shape == (3, 2, 3, 6 + 144)
    assert "converged" not in told
    assert figure(told, "log p(x)")[0] == pytest.approx(float(found["log_p"].mean()), rel=1e-3)
    assert found["loss"].mean() < 0.5 * 144 * 0.2**2  # σ² a pixel under the chains' ends, about


def test_noise_maps_need_a_penalty_and_the_generator_is_tuned(
    flexgen: Run, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*STYLE, *CPU, "space=w+", "layers=3", "noise=noise_const", "own=2")
    kept = generators.style.synthesis.noise_const.clone()
    with pytest.raises(SystemExit) as stopped:
        flexgen("reverse", *words)
    assert "give reverse.constraint=map" in str(stopped.value.code)
    weight = "reverse.constraint_weight=0.01"
    flexgen("reverse", *words, "reverse.constraint=map", weight, "tune=20", "reverse.steps=20")
    assert load_file("codes/codes.safetensors")["z"].shape == (6, 18 + 144)
    assert torch.equal(generators.style.synthesis.noise_const, kept)
    before, after = figure(capsys.readouterr().out, "pivotal tuning")[1:3]
    assert after < before
    weights = load_file("codes/tuned.safetensors")
    assert weights.keys() == generators.style.state_dict().keys()
    own = generators.style.synthesis.layers[0].weight
    assert not torch.equal(weights["synthesis.layers.0.weight"], own)


def test_labels_mask_and_terms_of_a_loss(flexgen: Run, work: Path) -> None:
    z, label = torch.randn(6, 4), torch.arange(6) % 3
    with torch.no_grad():
        x = generators.conditional(z, label)
    mask = np.full((12, 12), 255, np.uint8)
    mask[:, 6:] = 0
    Image.fromarray(mask).save("mask.png")
    spoiled = torch.where(torch.from_numpy(mask > 0), x, -1.0)
    np.save("spoiled.npy", spoiled.numpy())
    np.save("y.npy", label.numpy())
    flexgen(
        "reverse", "generator=generators:conditional", "trust=true", "latent_dim=4", "data=array",
        "path=spoiled.npy", "labels=y.npy", "mask=mask.png", *CPU, "own=3",
        "reverse.loss=[{name: mse}, {name: l1, weight: 0.1, scales: 2}]", "reverse.steps=300",
    )  # fmt: skip
    found = load_file("codes/codes.safetensors")
    with torch.no_grad():
        x_hat = generators.conditional(found["z"], label)
    assert (x_hat - x).abs().max() < 0.05
    assert "ssim" not in found
    assert "mse + 0.1 l1 of 2 scales a sample" in Path("codes/pairs.html").read_text()


def test_features_of_a_saved_classifier_are_a_loss(flexgen: Run, work: Path) -> None:
    x, y = torch.from_numpy(np.load("x.npy")), torch.arange(6) % 2
    classifier = load_or_train_classifier("mine", x, y, x, y, 2, work, epochs=1)
    loss = "reverse.loss=[{name: perceptual, weight: 2, features: mine.safetensors}]"
    flexgen("reverse", *STYLE, *CPU, loss, "reverse.steps=5", "own=0")
    found = load_file("codes/codes.safetensors")
    with torch.no_grad():
        a, b = (classifier.features(side) for side in (generators.style(found["z"]), x))
    torch.testing.assert_close(found["loss"], (a - b).square().sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["space=w", "mapping=map"], r"has no 'map'; name it with mapping=NAME; it has mapping, s"),
        (["space=w+"], r"`layers` must say how many"),
        (["space=w"], r"does not take w of shape \(2, 6\) .* give layers=NUMBER"),
        (["mask=none.png"], r"there is no mask none.png"),
        (["labels=x.npy"], r"the generator does not take codes of shape"),
        (["reverse.loss=perceptual"], r"needs a network of features"),
        (["reverse.loss=[{name: perceptual, features: x.safetensors}]"], r"holds no classifier"),
        (["reverse.loss=lpips"], r"needs the weights of its network in a file"),
        (["latent_dim=null", "latent_shape=[[4],[a]]"], r"`shapes` must be lists and dicts"),
    ],
)
def test_what_is_missing_is_told(
    flexgen: Run, work: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(work))
    given = [word for word in STYLE if "latent_dim=null" not in words or "latent_dim" not in word]
    with pytest.raises(SystemExit, match=message):
        flexgen("reverse", *given, *CPU, *words)
