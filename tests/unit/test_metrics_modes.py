"""Mode coverage: hand counts, the mixture's own values, errors."""

import math

import pytest
import torch

from flexgen.metrics import ModeCoverage

CENTRES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])


def measured(x: torch.Tensor, centres: torch.Tensor = CENTRES, std: float = 1.0):
    metric = ModeCoverage(centres, std)
    metric.update(x)
    return {name: float(value) for name, value in metric.compute().items()}


def test_counts_by_hand():
    x = torch.tensor(
        [
            [0.0, 2.9],  # mode 0, near
            [0.0, 3.1],  # mode 0, far
            [-1.0, 0.0],  # mode 0, near
            [10.0, 3.5],  # mode 1, far only
            [0.0, 10.0],  # mode 2, near
        ]
    )
    assert measured(x) == pytest.approx(
        # shares 3/5, 1/5, 1/5, 0 against 1/4 each
        {"captured": 2, "high_quality": 3 / 5, "total_variation": 0.35}
    )


def test_a_sample_on_the_radius_counts():
    assert measured(torch.tensor([[3.0, 0.0]]))["high_quality"] == 1


def test_samples_of_the_mixture_have_its_own_values():
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    mode = torch.randint(4, (n,), generator=generator)
    x = CENTRES[mode] + 0.5 * torch.randn(n, 2, generator=generator)
    values = measured(x, std=0.5)
    assert values["captured"] == 4
    share = 1 - math.exp(-4.5)
    assert values["high_quality"] == pytest.approx(share, abs=4 * math.sqrt(share / n / 90))
    assert values["total_variation"] < 3 * math.sqrt(3 / (2 * math.pi * n))


def test_collapse_on_one_mode_has_the_largest_variation():
    values = measured(CENTRES[[1]].repeat(7, 1))
    assert values == pytest.approx({"captured": 1, "high_quality": 1, "total_variation": 0.75})


@pytest.mark.parametrize(
    ("centres", "std", "message"),
    [
        (torch.zeros(3), 1.0, r"`centres` must have shape \(modes, features\), got \(3,\)"),
        (torch.empty(0, 2), 1.0, r"got \(0, 2\)"),
        (CENTRES, 0.0, "`std` must be positive and finite, got 0.0"),
        (torch.full((2, 2), math.nan), 1.0, "`centres` must be finite"),
    ],
)
def test_bad_arguments_are_refused_at_construction(centres, std, message):
    with pytest.raises(ValueError, match=message):
        ModeCoverage(centres, std)


def test_bad_samples_are_refused():
    metric = ModeCoverage(CENTRES, 1.0)
    with pytest.raises(ValueError, match="`x` must have the 2 features of the centres, got 3"):
        metric.update(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="`x` must be finite, got 4 of 4 rows"):
        metric.update(torch.full((4, 2), math.nan))
    metric.update(torch.empty(0, 2))
    with pytest.raises(ValueError, match="no samples to score"):
        metric.compute()
