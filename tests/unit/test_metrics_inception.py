"""FID by Inception features: the pixels that they are of, and files that hold no weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flexgen.metrics import InceptionFeatures

module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


class Seen(torch.nn.Module):
    """Stands in for the network of 24 million weights: its features are the mean pixels."""

    def __init__(self, name: str, features_list: list[str], path: str) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return (x.float().flatten(2).mean(2),)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_pixels_are_whole_numbers_of_three_channels_in_the_range_of_the_data(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FeatureExtractorInceptionV3", Seen)
    inception = InceptionFeatures(weights, (-1.0, 1.0))
    grey = torch.tensor([-1.0, 0.0, 1.0, 2.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2).clone()
    grey[3, 0, 0, 0] = torch.nan
    found = inception.features(grey)
    assert found[:3].tolist() == [[0.0] * 3, [128.0] * 3, [255.0] * 3]
    assert found[3].isnan().all()
    with pytest.raises(ValueError, match=r"takes images \(n, 1 or 3, h, w\), got \(2, 2\)"):
        inception.features(torch.zeros(2, 2))


def test_a_file_without_the_weights_is_told(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`features` must be a file of Inception's"):
        InceptionFeatures(tmp_path / "none.pth")
    torch.save({"code": Path("x")}, tmp_path / "program.pth")
    with pytest.raises(ValueError, match="`features` must hold the weights"):
        InceptionFeatures(tmp_path / "program.pth")
