"""How near reconstructions come to data, of each sample, in units that papers quote."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

# Side of SSIM's window.
_WINDOW = 11


def reconstruction_error(
    x_hat: Tensor, x: Tensor, value_range: tuple[float, float], known: Tensor | None = None
) -> dict[str, Tensor]:
    """RMSE, PSNR and SSIM of each sample.

    RMSE is the root of the mean squared error of an element, in units of x; PSNR is
    20 log₁₀((high − low) / RMSE) dB, infinite at no error; SSIM, at most 1, is that of torchmetrics
    with a Gaussian window of 11 pixels.

    Args:
        x_hat: reconstructions, `(n, *shape)`.
        x: data, of the same shape.
        value_range: (low, high) of the data; reconstructions are clipped to it for SSIM.
        known: which elements count, broadcast to x; None: all.

    Returns:
        "rmse", for images "psnr", and for those of 11 pixels a side or more whose elements all
        count "ssim", each `(n,)`.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity",
        2004 (SSIM).
    """
    low, high = value_range
    squares = (x_hat - x).square()
    if known is None:
        mean = squares.flatten(1).mean(1)
    else:
        counts = known.expand_as(x).flatten(1)
        mean = squares.flatten(1).masked_fill(~counts, 0).sum(1) / counts.sum(1)
    rmse = mean.sqrt()
    found = {"rmse": rmse}
    if x.dim() == 4:  # what else there is has no white and black
        found["psnr"] = 20 * torch.log10((high - low) / rmse)
    if x.dim() == 4 and min(x.shape[2:]) >= _WINDOW and known is None:
        ssim = structural_similarity_index_measure(
            x_hat, x, data_range=(low, high), reduction="none"
        )
        assert isinstance(ssim, Tensor)
        found["ssim"] = ssim.reshape(len(x))
    return found
