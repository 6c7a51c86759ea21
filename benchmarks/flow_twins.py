"""zuko's flows with the weights of ours: the same function, so the same work.

zuko bounds a log-scale by a rational function and ours by tanh; the twins are given tanh, by the
`univariate` that zuko lets its users choose.
"""

from typing import Any

import torch
import zuko
from torch import Tensor, nn

from flexgen.flows import Autoregressive, Coupling

__all__ = ["autoregressive_twin", "coupling_twin"]


class TanhAffine(zuko.transforms.MonotonicAffineTransform):
    """y = eˢ x + t with s = tanh(r)."""

    def __init__(self, shift: Tensor, scale: Tensor, **options: Any) -> None:
        torch.distributions.Transform.__init__(self, **options)
        self.shift, self.log_scale = shift, scale.tanh()
        self.scale = self.log_scale.exp()


def coupling_twin(ours: Coupling, hidden_features: list[int]) -> nn.Module:
    """A zuko flow whose way from data to base is our way from base to z.

    Args:
        ours: alternating, without a context, with gains of 1; an even number of features.
        hidden_features: as ours was built with.
    """
    d, net = ours.features, ours.nets[0]
    layers = [
        zuko.flows.coupling.GeneralCouplingTransform(
            d, mask=torch.arange(d) % 2 == (layer + 1) % 2, univariate=TanhAffine,
            hidden_features=hidden_features,
        )
        for layer in range(len(ours.orders))
    ]  # fmt: skip
    for layer, theirs in enumerate(layers):
        linears = [module for module in theirs.hyper if isinstance(module, zuko.nn.Linear)]
        for k, linear in enumerate(linears):
            weight, bias = getattr(net, f"weight{k}")[layer], getattr(net, f"bias{k}")[layer, :, 0]
            rows = _shift_first(len(weight)) if linear is linears[-1] else slice(None)
            linear.weight.data, linear.bias.data = weight[rows].data, bias[rows].data
    return _flow(layers, ours)


def autoregressive_twin(ours: Autoregressive, hidden_features: list[int]) -> nn.Module:
    """A zuko flow whose way from data to base is our way from base to z.

    Args:
        ours: of reversed or natural order, with gains of 1.
        hidden_features: as ours was built with.
    """
    d, context, net = ours.features, ours.context_features, ours.nets[0]
    layers = [
        zuko.flows.MaskedAutoregressiveTransform(
            d, context, order=order.argsort(), univariate=TanhAffine,
            hidden_features=hidden_features,
        )
        for order in ours.orders
    ]  # fmt: skip
    for layer, (theirs, order) in enumerate(zip(layers, ours.orders, strict=True)):
        linears = [module for module in theirs.hyper if isinstance(module, nn.Linear)]
        columns, degrees = order, order.argsort() + 1
        for k, linear in enumerate(linears):
            weight, bias = getattr(net, f"weight{k}")[layer], getattr(net, f"bias{k}")[layer, :, 0]
            seen = linear.mask[:, : len(degrees)] * degrees
            degrees = seen.max(1).values if seen.shape[1] else seen.sum(1)
            # Their unit r is our unit rows[r]; ours are sorted by degree.
            rows = degrees.argsort(stable=True).argsort()
            if linear is linears[-1]:
                rows = (2 * order.argsort()[:, None] + torch.tensor([1, 0])).flatten()
            linear.weight.data[:, : weight.shape[1]] = weight[rows][:, columns.argsort()].data
            linear.bias.data = bias[rows].data
            if k == 0 and context:
                shared = net.context_weight.unflatten(0, (len(ours.orders), -1))[layer]
                linear.weight.data[:, d:] = shared[rows].data
            columns = rows.argsort()
    return _flow(layers, ours)


def _flow(layers: list[nn.Module], ours: nn.Module) -> nn.Module:
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(ours.features), torch.ones(ours.features),
        buffer=True,
    )  # fmt: skip
    return zuko.flows.Flow(layers, base).to(ours.orders.device, next(ours.parameters()).dtype)


def _shift_first(rows: int) -> Tensor:
    """Ours has the log-scale before the shift of each coordinate, zuko after it."""
    return torch.arange(rows).view(-1, 2).flip(1).flatten()
