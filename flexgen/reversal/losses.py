"""What reversal minimises: the reconstruction loss of each sample, and what is added to it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of, check_positive
from flexgen.reversal.perceptual import FeatureLoss, lpips

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of reconstructions and data, both `(batch, *shape)`: a loss of each sample, `(batch,)`."""

Penalty = Callable[[Tensor], Tensor]
"""Of codes `(batch, …)`: what is added to the loss of each, `(batch,)`."""

Term = str | Loss | Mapping[str, Any]
"""A loss by its name, itself, or as `{name: l1, weight: 0.1, scales: 3}`."""


def half_squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """½‖x̂ − x‖² of each sample, `(batch,)`.

    Source: Kilcher et al., 2017, eq. 4.
    """
    return (x_hat - x).square().flatten(1).sum(1) / 2


def cross_entropy(x_hat: Tensor, x: Tensor) -> Tensor:
    """−Σ [x log x̂ + (1 − x) log(1 − x̂)] of each sample, `(batch,)`, in nats; both in [0, 1].

    Source: Creswell & Bharath, 2016, Algorithm 1, line 4 (eq. 1 and 5 there lack the second term).
    """
    # A saturated sigmoid gives exactly 0 or 1: the floor keeps log and its gradient finite, and it
    # is the smallest normal number so that a nearly saturated pixel still has its true gradient.
    floor = torch.finfo(x_hat.dtype).tiny
    log_p, log_q = x_hat.clamp_min(floor).log(), (1 - x_hat).clamp_min(floor).log()
    return -(x * log_p + (1 - x) * log_q).flatten(1).sum(1)


def absolute_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """‖x̂ − x‖₁ of each sample, `(batch,)`."""
    return (x_hat - x).abs().flatten(1).sum(1)


def huber(x_hat: Tensor, x: Tensor, delta: float = 0.1) -> Tensor:
    """Σ h(x̂ − x) of each sample, `(batch,)`: h(e) = ½e² up to |e| = δ, δ(|e| − δ/2) beyond.

    Source: Huber, "Robust estimation of a location parameter", 1964. δ is `delta`, in units of x.
    """
    return F.huber_loss(x_hat, x, reduction="none", delta=delta).flatten(1).sum(1)


def multi_scale(x_hat: Tensor, x: Tensor, loss: Loss, scales: int) -> Tensor:
    """Σₖ 4ᵏ ℓ(x̂ₖ, xₖ) of each sample, `(batch,)`, over k = 0 … `scales` − 1.

    x₀ is x, xₖ₊₁ the means of xₖ over squares of 2 × 2 pixels; 4ᵏ makes up for their number.
    """
    total = loss(x_hat, x)
    for k in range(1, scales):
        x_hat, x = F.avg_pool2d(x_hat, 2), F.avg_pool2d(x, 2)
        total = total + 4**k * loss(x_hat, x)
    return total


LOSSES: dict[str, Callable[..., Any]] = {
    "mse": half_squared_error, "bce": cross_entropy, "l1": absolute_error, "huber": huber,
    "lpips": lpips, "perceptual": FeatureLoss,
}  # fmt: skip
"""By name; the last two make a loss of their arguments."""

_MADE = ("lpips", "perceptual")


def loss_of(loss: Term | Sequence[Term]) -> Loss:
    """The loss that is meant: one term, or the sum of several, each times its weight.

    Args:
        loss: a name of :data:`LOSSES`, a function, a mapping with `name`, `weight` (1 by default),
            `scales` (1 by default, see :func:`multi_scale`) and the arguments of that loss, such as
            `delta` of :func:`huber`; or a list of them.

    Raises:
        ValueError: for an unknown name or argument, or a weight that is not positive.
        FileNotFoundError: if "lpips" lacks the file of its network.
    """
    if isinstance(loss, str) or callable(loss):
        return _named(loss, {})
    terms = [loss] if isinstance(loss, Mapping) else list(loss)
    if not terms:
        raise ValueError("`loss` must name at least one term, got []; as in [{name: l1}]")
    weighted = [_weighted(term) for term in terms]
    return weighted[0] if len(weighted) == 1 else partial(_sum, terms=weighted)


def loss_text(loss: Term | Sequence[Term]) -> str:
    """A loss as a person writes it: "l1 + 0.1 perceptual"."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, Mapping):
        weight = "" if loss.get("weight", 1) == 1 else f"{loss['weight']:g} "
        return f"{weight}{loss['name']}" + (f" of {n} scales" if (n := loss.get("scales")) else "")
    if callable(loss):
        return getattr(loss, "__name__", type(loss).__name__)
    return " + ".join(map(loss_text, loss))


def in_unit_range(loss: Term | Sequence[Term]) -> bool:
    """Whether a loss is of data in [0, 1] alone, as a cross-entropy is."""
    if isinstance(loss, str):
        return loss == "bce"
    if isinstance(loss, Mapping):
        return loss.get("name") == "bce"
    return not callable(loss) and any(map(in_unit_range, loss))


def in_range(loss: Term | Sequence[Term], value_range: Sequence[float]) -> Term | Sequence[Term]:
    """A loss whose terms "lpips", if none is given there, know the (low, high) of the data."""
    if isinstance(loss, Sequence) and not isinstance(loss, str):
        return [cast(Term, in_range(term, value_range)) for term in loss]
    term = {"name": loss} if isinstance(loss, str) else loss
    if isinstance(term, Mapping) and term.get("name") == "lpips":
        return {"range": value_range, **term}
    return loss


def of_known(x_hat: Tensor, x: Tensor, loss: Loss) -> Tensor:
    """ℓ where both sides are 0 at the elements of x that are not known, which hold NaN there."""
    unknown = x.isnan()
    return loss(x_hat.masked_fill(unknown, 0), x.masked_fill(unknown, 0))


def _weighted(term: Term) -> Loss:
    if not isinstance(term, Mapping):
        return _named(term, {})
    given = dict(term)
    weight = check_positive("weight", given.pop("weight", 1))
    scales = check_integer("scales", given.pop("scales", 1))
    loss = _named(given.pop("name", None), given)
    if scales > 1:
        loss = partial(multi_scale, loss=loss, scales=scales)
    return loss if weight == 1 else lambda x_hat, x: weight * loss(x_hat, x)


def _named(name: Any, arguments: dict[str, Any]) -> Loss:
    if callable(name):
        found: Loss = name
        return found
    check_one_of("loss", name, LOSSES)
    try:
        return LOSSES[name](**arguments) if name in _MADE else _with(LOSSES[name], arguments)
    except TypeError as error:
        raise ValueError(
            f"loss {name!r} does not take these arguments, got {', '.join(arguments) or 'none'} "
            f"({error}); see `flexgen.reversal.losses`"
        ) from error


def _with(loss: Loss, arguments: dict[str, Any]) -> Loss:
    if not arguments:
        return loss
    inspect.signature(loss).bind(None, None, **arguments)
    return partial(loss, **arguments)


def _sum(x_hat: Tensor, x: Tensor, terms: Sequence[Loss]) -> Tensor:
    return torch.stack([term(x_hat, x) for term in terms]).sum(0)


def normal_penalty(z: Tensor, loc: float, scale: float, weight: float) -> Tensor:
    """γ ½‖(z − μ)/σ‖² of each code, `(batch,)`: γ times −log N(z; μ, σ²I), without its constant.

    μ is `loc`, σ `scale`, γ `weight`.
    """
    return weight * ((z - loc) / scale).square().flatten(1).sum(1) / 2


def moment_penalty(z: Tensor, loc: float, scale: float) -> Tensor:
    """(μ − μ̂)² + (σ − σ̂)², with μ̂ and σ̂ the mean and standard deviation of all elements of z.

    z are the codes of one batch, μ (`loc`) and σ (`scale`) the prior's.

    Source: Creswell & Bharath, 2016, eq. 5.
    """
    std, mean = torch.std_mean(z, correction=0)
    return (mean - loc).square() + (std - scale).square()


class ToUnit(nn.Module):
    """Data in [low, high] moved to [0, 1], where a cross-entropy wants them."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.low) / (self.high - self.low)


class FromUnit(ToUnit):
    """Data in [0, 1] moved back to [low, high]."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.high - self.low) + self.low


class Moved(nn.Module):
    """G's data moved to another range."""

    def __init__(self, generator: Callable[..., Tensor], move: nn.Module) -> None:
        super().__init__()
        self.generator, self.move = generator, move

    def forward(self, z: Tensor, *context: Tensor) -> Tensor:
        x: Tensor = self.move(self.generator(z, *context))
        return x
