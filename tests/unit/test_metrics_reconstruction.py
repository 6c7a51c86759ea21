"""RMSE, PSNR and SSIM of each sample against torchmetrics, and of known elements alone."""

import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from flexgen.metrics import reconstruction_error


def pairs(side=12):
    draw = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(3, 1, side, side, generator=draw) - 1
    return x + 0.2 * torch.randn(x.shape, generator=draw), x


def test_each_sample_has_torchmetrics_values():
    x_hat, x = pairs()
    found = reconstruction_error(x_hat, x, (-1.0, 1.0))
    for i in range(3):
        a, b = x_hat[i : i + 1], x[i : i + 1]
        psnr = peak_signal_noise_ratio(a, b, data_range=2.0)
        torch.testing.assert_close(found["psnr"][i], psnr)
        ssim = structural_similarity_index_measure(a, b, data_range=(-1.0, 1.0))
        torch.testing.assert_close(found["ssim"][i], ssim)
        assert found["rmse"][i] == pytest.approx(float((a - b).square().mean().sqrt()))


def test_unknown_elements_do_not_count_and_small_images_have_no_ssim():
    x_hat, x = pairs()
    known = torch.zeros(1, 12, 12, dtype=torch.bool)
    known[:, :3] = True
    found = reconstruction_error(x_hat, torch.where(known, x, 9.0), (-1.0, 1.0), known)
    torch.testing.assert_close(
        found["rmse"], (x_hat - x)[:, :, :3].square().flatten(1).mean(1).sqrt()
    )
    assert "ssim" not in found
    assert "ssim" not in reconstruction_error(*pairs(10), (-1.0, 1.0))
