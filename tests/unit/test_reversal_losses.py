"""Losses of reversal: what they are, sums of them, masks, MAP; and what is refused."""

import pytest
import torch
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS

from flexgen.metrics import Classifier
from flexgen.reversal import reverse
from flexgen.reversal.losses import in_unit_range, loss_of, loss_text
from flexgen.reversal.perceptual import FeatureLoss, lpips


@pytest.fixture(scope="module")
def pairs():
    draw = torch.Generator().manual_seed(0)
    return torch.rand(2, 4, 1, 8, 8, generator=draw)


def linear(features=12, latent_dim=4):
    torch.manual_seed(0)
    return nn.Linear(latent_dim, features).double().requires_grad_(False)


def test_terms_are_weighted_and_pooled(pairs):
    x_hat, x = pairs
    e = x_hat - x
    whole = e.abs().flatten(1).sum(1)
    halved = nn.functional.avg_pool2d(e, 2).abs().flatten(1).sum(1)
    torch.testing.assert_close(loss_of({"name": "l1", "scales": 2})(x_hat, x), whole + 4 * halved)
    terms = [{"name": "l1", "weight": 0.5}, "mse", {"name": "huber", "delta": 10}]
    torch.testing.assert_close(loss_of(terms)(x_hat, x), 0.5 * whole + e.square().flatten(1).sum(1))
    assert loss_text(terms) == "0.5 l1 + mse + huber"
    assert in_unit_range(["l1", {"name": "bce"}])
    assert not in_unit_range(terms)


def test_huber_is_linear_far_out():
    far = loss_of({"name": "huber", "delta": 0.1})(torch.tensor([[2.0]]), torch.zeros(1, 1))
    torch.testing.assert_close(far, torch.tensor([0.1 * (2 - 0.05)]))


def test_features_of_a_classifier(pairs):
    torch.manual_seed(0)
    classifier = Classifier((1, 8, 8), 3)
    loss = loss_of([{"name": "perceptual", "features": classifier.features}])
    a, b = map(classifier.features, pairs)
    torch.testing.assert_close(loss(*pairs), (a - b).square().sum(1) / 2)
    torch.testing.assert_close(FeatureLoss(lambda x: [x, x])(*pairs), 2 * loss_of("mse")(*pairs))


def test_lpips_is_torchmetrics_with_the_backbone_of_a_file(pairs, tmp_path):
    torch.manual_seed(0)
    theirs = _LPIPS(net="alex", pnet_rand=True)
    state = theirs.net.state_dict()
    saved = {"features." + name.split(".", 1)[1]: value for name, value in state.items()}
    torch.save(saved, tmp_path / "alex.pth")
    ours = lpips(backbone=tmp_path / "alex.pth", range=(0, 1))
    colour = pairs.expand(-1, -1, 3, 8, 8)
    up = [nn.functional.interpolate(2 * x - 1, 64, mode="bilinear") for x in colour]
    torch.testing.assert_close(ours(*pairs), theirs(*up).flatten())
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"cannot take the weights of alex"):
        lpips(backbone=tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere.pth; give torchvision's"):
        loss_of({"name": "lpips", "backbone": tmp_path / "nowhere.pth"})


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_a_mask_leaves_the_unknown_elements_to_the_generator(method):
    """From 8 of 12 elements a linear generator's codes, and so the other 4, are recovered."""
    generator = linear()
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    x = generator(z)
    mask = torch.ones(5, 12)
    mask[:, :4] = 0
    mask[0] = mask[0].flip(0)  # each sample has its own
    spoiled = torch.where(mask.bool(), x, 100.0)
    options = {"latent_shape": 4, "method": method, "tolerance": 1e-6, "steps": 2000}
    found = reverse(generator, spoiled, mask=mask, **options)
    torch.testing.assert_close(found.x_hat, x, atol=1e-3, rtol=0)
    assert found.loss.max() < 1e-5
    assert reverse(generator, spoiled, **options).loss.min() > 100
    torch.testing.assert_close(
        reverse(generator, x, mask=torch.ones(12), **options).z, reverse(generator, x, **options).z
    )


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_map_is_the_mode_of_the_posterior(method):
    generator, gamma = linear(), 0.3
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)).double()
    found = reverse(
        generator, x, latent_shape=4, method=method, constraint="map", moments=(0.5, 2.0),
        constraint_weight=gamma, tolerance=1e-7, steps=2000,
    )  # fmt: skip
    w = generator.weight
    precision = w.T @ w + gamma / 4 * torch.eye(4).double()
    mode = torch.linalg.solve(precision, w.T @ (x - generator.bias).T + gamma / 4 * 0.5).T
    torch.testing.assert_close(found.z, mode, atol=1e-3, rtol=0)
    residual = (generator(found.z) - x).square().sum(1) / 2
    torch.testing.assert_close(found.loss, residual)  # reported without the penalty


def test_a_function_is_a_loss():
    generator = linear()
    x = generator(torch.ones(3, 4).double())
    found = reverse(generator, x, latent_shape=4, loss=lambda a, b: (a - b).pow(4).sum(1))
    assert found.loss.max() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": []}, r"`loss` must name at least one term"),
        ({"loss": [{"name": "l1", "weight": 0}]}, r"`weight` must be positive"),
        ({"loss": {"name": "mse", "delta": 1}}, r"loss 'mse' does not take these arguments"),
        ({"loss": "perceptual"}, r"loss 'perceptual' does not take these arguments, got none"),
        ({"loss": lambda a, b: (a - b).sum()}, r"`loss` must give one number for each sample"),
        ({"mask": torch.ones(5)}, r"`mask` must fit data of shape \(3, 12\), got \(5,\)"),
        ({"mask": torch.zeros(12)}, r"`mask` must be 1 where x is known"),
        ({"mask": 0.5 * torch.ones(12)}, r"`mask` must be 1 where x is known"),
    ],
)
def test_wrong_losses_and_masks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        reverse(linear(), torch.zeros(3, 12), latent_shape=4, steps=2, **change)
