"""MADE's logits are those of zuko's masked network on the same weights."""

import pytest
import torch

from flexgen.networks import MADE


@pytest.fixture(scope="module", autouse=True)
def zuko():  # type: ignore[no-untyped-def]
    """zuko, which turns torch's validation of arguments off; it is on again for the others."""
    arguments = torch.distributions.Distribution.arg_constraints
    yield pytest.importorskip("zuko")
    torch.distributions.Distribution.set_default_validate_args(__debug__)
    torch.distributions.Distribution.arg_constraints = arguments


@pytest.mark.parametrize("order", [0, 1])
def test_logits(order: int) -> None:
    from zuko.nn import MaskedMLP

    torch.manual_seed(0)
    d, widths = 9, [16, 24]
    ours = MADE((1, 3, 3), widths, num_orders=2).double()
    rank = ours.orders[order].argsort()
    theirs = MaskedMLP(rank[:, None] > rank, widths, activation=torch.nn.ReLU).double()
    masked = [layer for layer in theirs if isinstance(layer, torch.nn.Linear)]
    columns, has = torch.arange(d), rank + 1
    for k, (layer, own) in enumerate(zip(masked, ours.layers, strict=True)):
        # A unit's degree is the highest of those that it sees; ours are sorted by theirs.
        degrees = (layer.mask * has).max(1).values
        rows = torch.arange(d) if k == 2 else degrees.argsort(stable=True).argsort()
        layer.weight.data = own.weight[rows][:, columns].data.clone()
        layer.bias.data = own.bias[rows].data.clone()
        columns, has = rows, degrees
    x = torch.rand(50, d).double().round()
    torch.testing.assert_close(ours.logits(x, order), theirs(x))
    assert ours.logits(x, order).std() > 0.05
