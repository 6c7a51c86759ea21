"""When a refit counts as closer to held-out codes."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from flexgen.callbacks import PriorRefit
from flexgen.codes import Codes
from flexgen.contracts import Prior
from flexgen.priors import Normal, Staged

N, D = 440, 20


class Already(Normal):
    """A prior that a fit leaves as it is."""

    learns = True

    def fit(self, codes: Tensor, **options: Any) -> dict[str, float]:
        return {}


class Model:
    capabilities = frozenset({"prior"})

    def __init__(self, before: Prior, after: Prior) -> None:
        self.prior = Staged([before, after])
        self.evaluating = nullcontext

    def points(self, z: Tensor) -> Tensor:
        return z


def refitted(scale_before: float, scale_after: float, monkeypatch: Any) -> dict[str, float]:
    """A refit where the codes of data, training and held-out, are N(0, I)."""
    sizes = {"train": 1000, "validation": N}
    monkeypatch.setattr(
        PriorRefit,
        "_codes",
        lambda self, model, data, split, n: Codes(torch.randn(sizes[split], D), None),
    )
    model: Any = Model(Normal(D, scale_before), Already(D, scale_after))
    torch.manual_seed(0)
    return PriorRefit(Already(D), at=[1]).refit(model, None, 1)


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.7), (1.0, 1.4), (1.2, 1.5)])
def test_neither_a_narrow_nor_a_wide_prior_is_closer(
    before: float, after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = refitted(before, after, monkeypatch)
    assert values["refit/energy_after"] > values["refit/energy_before"]
    assert values["refit/kept"] == values["prior/stage"] == 0


@pytest.mark.parametrize("before", [0.7, 1.4])
def test_the_right_prior_is_closer(before: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = refitted(before, 1.0, monkeypatch)
    assert values["refit/kept"] == values["prior/stage"] == 1
    assert abs(values["refit/energy_after"]) < 0.01
    assert abs(values["refit/energy_floor"]) < 0.01
