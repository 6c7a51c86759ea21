"""Inception's features of images, by weights from a file: those that published FIDs are of."""

from pathlib import Path

import torch
from torch import Tensor, nn

from flexgen.checks import first_line


class InceptionFeatures(nn.Module):
    """The 2,048 features of InceptionV3 before its last layer, as torch-fidelity computes them.

    Grey images are given three equal channels; values are mapped from their range to whole numbers
    from 0 to 255, and sizes to 299 × 299 as TensorFlow did.

    Args:
        path: of the weights, `pt_inception-2015-12-05-6726825d.pth`; nothing is fetched.
        data_range: the images' range.

    Raises:
        ImportError: if torch-fidelity is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold these weights, and tensors alone.

    Source: Heusel et al., *GANs Trained by a Two Time-Scale Update Rule*, 2017, section 4; the
    weights and the resizing of its published code.
    """

    num_features = 2048
    loc: Tensor

    def __init__(self, path: str | Path, data_range: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(
                "Inception features need torch-fidelity: pip install torch-fidelity"
            ) from error
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"`features` must be a file of Inception's weights, and there is no {path}; leave "
                "it out, or get pt_inception-2015-12-05-6726825d.pth"
            )
        try:
            torch.load(path, weights_only=True)  # it runs no code, and torch-fidelity's might
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], str(path))
        except Exception as error:
            raise ValueError(
                "`features` must hold the weights of torch-fidelity's InceptionV3, "
                f"pt_inception-2015-12-05-6726825d.pth, and {path} does not "
                f"({first_line(error).rstrip(':.')}); torchvision's are others"
            ) from error
        self.low, self.high = data_range
        self.register_buffer("loc", torch.zeros(()))

    def features(self, x: Tensor) -> Tensor:
        """Features `(n, 2048)` of images `(n, 1 or 3, h, w)` in the range; NaN stays NaN.

        Raises:
            ValueError: for another number of channels.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"Inception takes images (n, 1 or 3, h, w), got {tuple(x.shape)}; leave "
                "`features` out"
            )
        share = ((x - self.low) / (self.high - self.low)).clamp(0, 1)
        pixels = (share * 255).round().nan_to_num().to(torch.uint8).expand(-1, 3, -1, -1)
        found: Tensor = self.network(pixels)[0]
        return found.where(x.isfinite().flatten(1).all(1, keepdim=True), torch.nan)
