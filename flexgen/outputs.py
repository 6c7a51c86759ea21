"""What a pixel network's parameters mean; the contract, :class:`flexgen.contracts.PixelOutput`."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, one_hot

from flexgen.checks import check_integer
from flexgen.contracts import PixelOutput

Grid = tuple[float, float, int]
"""Low and high end of the values that a channel can take, and how many they are, evenly spaced."""

# Of float32 data, in units of their range.
_ROUNDING = 1e-6
# Data of more values than these are told no number of levels to set.
_MOST_LEVELS = 1024
_LEAST_LOG_SCALE = -7.0


def level_grid(range: Sequence[float], levels: int) -> Grid:
    """The grid of `levels` values in a range.

    Raises:
        ValueError: for a range that does not rise, or under two levels.
    """
    low, high = (float(end) for end in range)
    if not low < high:
        raise ValueError(f"`range` must rise, got {(low, high)}; set `data.range=[-1,1]`")
    return low, high, check_integer("levels", levels, 2, "256 are usual")


def check_levels(x: Tensor, grid: Grid, what: str, key: str) -> None:
    """Refuse data that are not on a grid, or on one at most half as fine.

    Args:
        x: some data.
        grid: that of the distribution.
        what: the distribution, in words.
        key: its part of the configuration.

    Raises:
        ValueError: if they are not; it names the levels that they have.
    """
    low, high, levels = grid
    values = ((x.detach().unique().double() - low) / (high - low)).unique()
    fits = _on_grid(values, levels)
    if fits and len(values) < 2:
        return  # of one value nothing can be told
    # The coarsest grid that holds them, and that they fill by half.
    num = max(2, len(values))
    most = min(2 * num, (levels + 1) // 2 if fits else _MOST_LEVELS)
    for coarser in range(num, most + 1):
        if _on_grid(values, coarser):
            binary = f", or {key}=bernoulli with data.range=[0,1]" if coarser == 2 else ""
            raise ValueError(
                f"{what} of {levels} levels is of data that take as many values, got data of "
                f"{coarser}; set {key}.levels={coarser}{binary}"
            )
    if not fits:
        remedy = "set likelihood=gaussian" if key == "likelihood" else "round the data to a grid"
        raise ValueError(
            f"{what} of {levels} levels is of data on their grid, got {len(values)} values that "
            f"are not; {remedy}"
        )


def _on_grid(values: Tensor, levels: int) -> bool:
    """Whether values in [0, 1] are multiples of 1 / (levels − 1), or such rounded to 8 bits."""
    nearest = (values * (levels - 1)).round() / (levels - 1)
    stored = (nearest * 255).round() / 255
    near = torch.minimum((values - nearest).abs(), (values - stored).abs()) < _ROUNDING
    return bool(near.all())


class Bernoulli(PixelOutput):
    r"""Binary channels, $\log p = x l − \log(1 + e^l)$ with the parameter l, a logit."""

    data_range = (0.0, 1.0)

    def num_parameters(self, channels: int) -> int:
        return channels

    def num_uniforms(self, channels: int) -> int:
        return channels

    def seen(self, x: Tensor) -> Tensor:
        return x

    def data(self, seen: Tensor) -> Tensor:
        return seen

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return -binary_cross_entropy_with_logits(parameters, x, reduction="none").sum(1)

    def noise(self, uniform: Tensor) -> Tensor:
        # u < σ(l) where logit(u) < l: one comparison is all that is left to do for a pixel.
        return uniform.logit()

    def draw(self, parameters: Tensor, noise: Tensor, out: Tensor) -> None:
        torch.gt(parameters, noise, out=out)

    def check_data(self, x: Tensor) -> None:
        values = x.detach().unique()
        if not ((values == 0) | (values == 1)).all():
            other = float(values[(values != 0) & (values != 1)][0])
            raise ValueError(
                f"a Bernoulli output is of pixels that are 0 or 1, got {other:g}; use binary data "
                "such as data=digits_static, or output=categorical with output.levels"
            )


class _Levels(PixelOutput):
    """Channels that take the values of a grid.

    Args:
        range: (low, high), the data's range.
        levels: how many values there are, evenly spaced.

    Raises:
        ValueError: for a range that does not rise, or under two levels.
    """

    def __init__(self, range: Sequence[float] = (-1.0, 1.0), levels: int = 256) -> None:
        self.grid = level_grid(range, levels)
        self.data_range, self.levels = self.grid[:2], levels

    def index(self, x: Tensor) -> Tensor:
        """Which value each is, 0 … levels − 1, of x's own type; data of 8 bits are rounded."""
        low, high, levels = self.grid
        return ((x - low) * ((levels - 1) / (high - low))).round()

    def seen(self, x: Tensor) -> Tensor:
        """The grid's values, in [-1, 1]."""
        return _in_unit(self.index(x), self.levels)

    def data(self, seen: Tensor) -> Tensor:
        low, high, levels = self.grid
        index = ((seen + 1) * ((levels - 1) / 2)).round()
        return index * ((high - low) / (levels - 1)) + low

    def check_data(self, x: Tensor) -> None:
        check_levels(x, self.grid, f"a {type(self).__name__} output", "output")


def _in_unit(index: Tensor, levels: int) -> Tensor:
    return index * (2 / (levels - 1)) - 1


@cache
def _values(levels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The grid's values, the last one twice; see :func:`_first_above`."""
    index = torch.arange(levels + 1, dtype=dtype, device=device).clamp(max=levels - 1)
    return _in_unit(index, levels)


class Categorical(_Levels):
    r"""A channel of K values has K logits l of its own, $\log p = l_x − \log \sum_k e^{l_k}$.

    The other arguments, and what is refused, are those of a grid: `range` and `levels` K.

    Source: van den Oord et al., "Pixel recurrent neural networks", 2016, section 3.3 (K = 256).
    """

    def num_parameters(self, channels: int) -> int:
        assert channels == 1
        return self.levels

    def num_uniforms(self, channels: int) -> int:
        return channels

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return -cross_entropy(parameters, self.index(x.squeeze(1)).long(), reduction="none")

    def draw(self, parameters: Tensor, noise: Tensor, out: Tensor) -> None:
        values = _values(self.levels, out.dtype, out.device)
        torch.take(values, _first_above(parameters, noise), out=out)


class Indices(PixelOutput):
    r"""Whole numbers 0 … K − 1 that are names: K logits, as :class:`Categorical`, seen one-hot.

    The network sees √K e_x, of the same second moment whatever K is, so that it need not learn that
    neighbouring numbers have nothing to do with each other. Maps have one channel.

    Args:
        num_values: K.

    Raises:
        ValueError: for fewer than two values; as a check of data, for other numbers.
    """

    num_values: int

    def __init__(self, num_values: int) -> None:
        self.num_values = check_integer("num_values", num_values, 2)
        self.data_range = (0.0, float(self.num_values - 1))

    def num_seen(self, channels: int) -> int:
        return channels * self.num_values

    def num_parameters(self, channels: int) -> int:
        assert channels == 1
        return self.num_values

    def num_uniforms(self, channels: int) -> int:
        return channels

    def seen(self, x: Tensor) -> Tensor:
        names = one_hot(x.squeeze(1).long(), self.num_values).movedim(-1, 1)
        return names.to(x.dtype) * math.sqrt(self.num_values)

    def data(self, seen: Tensor) -> Tensor:
        return seen.argmax(1, keepdim=True).to(seen.dtype)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return -cross_entropy(parameters, x.squeeze(1).long(), reduction="none")

    def draw(self, parameters: Tensor, noise: Tensor, out: Tensor) -> None:
        index = _first_above(parameters, noise).clamp_(max=self.num_values - 1)
        out.zero_().scatter_(1, index, math.sqrt(self.num_values))

    def check_data(self, x: Tensor) -> None:
        values = x.detach().unique()
        names = (values == values.round()) & (values >= 0) & (values < self.num_values)
        if not names.all():
            raise ValueError(
                f"an Indices output is of whole numbers from 0 to {self.num_values - 1}, got "
                f"{float(values[~names][0]):g}; set `num_values`, or output=normal_mixture"
            )


class NormalMixture(PixelOutput):
    r"""A channel of real values by a mixture of M normals, $p(x) = \sum_m π_m N(x; μ_m, s_m^2)$.

    A density: nats against the Lebesgue measure of the data's unit. log s is kept in
    [−7, 7], as what is drawn from a wide component drives the rest of the image.

    Args:
        num_components: M.

    Raises:
        ValueError: for no component.

    Source: Bishop, "Mixture density networks", 1994, eq. 22 and 23; as what a pixel network gives,
    Theis & Bethge, "Generative image modeling using spatial LSTMs", 2015.
    """

    has_mass = False
    data_range = None

    def __init__(self, num_components: int = 10) -> None:
        self.num_components = check_integer("num_components", num_components)

    def num_parameters(self, channels: int) -> int:
        assert channels == 1
        return 3 * self.num_components

    def num_uniforms(self, channels: int) -> int:
        return 2 * channels

    def seen(self, x: Tensor) -> Tensor:
        return x

    def data(self, seen: Tensor) -> Tensor:
        return seen

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        logits, loc, log_scale = parameters.chunk(3, 1)
        log_scale = log_scale.clamp(_LEAST_LOG_SCALE, -_LEAST_LOG_SCALE)
        squares = ((x - loc) * (-log_scale).exp()).square()
        each = logits.log_softmax(1) - log_scale - 0.5 * (squares + math.log(2 * math.pi))
        return each.logsumexp(1)

    def noise(self, uniform: Tensor) -> Tensor:
        """The component's number as it is, the value's as a draw from N(0, 1)."""
        tiny = torch.finfo(uniform.dtype).tiny
        normal = torch.special.ndtri(uniform[..., 1:].clamp(min=tiny))
        return torch.cat([uniform[..., :1], normal], -1)

    def draw(self, parameters: Tensor, noise: Tensor, out: Tensor) -> None:
        logits, loc, log_scale = parameters.chunk(3, 1)
        chosen = _first_above(logits, noise[:, :1]).clamp_(max=self.num_components - 1)
        log_scale = log_scale.gather(1, chosen).clamp(_LEAST_LOG_SCALE, -_LEAST_LOG_SCALE)
        torch.addcmul(loc.gather(1, chosen), log_scale.exp(), noise[:, 1:], out=out)

    def check_data(self, x: Tensor) -> None:
        pass


def _first_above(logits: Tensor, uniform: Tensor) -> Tensor:
    """Of values with logits `(n, K)` the first whose cumulated probability exceeds u `(n, 1)`.

    It is K, one too many, where rounding leaves the sum of all below u.
    """
    cumulated = logits.softmax(1).cumsum_(1)
    return torch.searchsorted(cumulated, uniform.contiguous(), right=True)


class LogisticMixture(_Levels):
    r"""The channels of a pixel by a mixture of M components, each a logistic's mass in each cell.

    .. math:: p(x) = \sum_m π_m \prod_c \left[ σ((x_c + δ − μ_{mc})/s_{mc})
        − σ((x_c − δ − μ_{mc})/s_{mc}) \right],
        \quad μ_{mc} = \bar μ_{mc} + \sum_{b<c} \tanh(α_{mcb})\, x_b

    with x in [-1, 1] and δ half a level. The lowest value has all mass below its upper edge, the
    highest all above its lower one, so the masses of all values add up to 1. The component is that
    of the pixel, not of a channel.

    Args:
        range: (low, high), the data's range.
        levels: how many values there are, evenly spaced.
        num_components: M.

    Raises:
        ValueError: for a range that does not rise, under two levels, or no component.

    Source: Salimans et al., "PixelCNN++", 2017, eq. 1 to 3. Departures: a mean's coefficients are
    of the data as they are there, any number of channels; log s is no lower than −7, as in the
    authors' code; the mass of a narrow cell is a difference in logarithms, exact however far from
    the mean, where their code takes the density.
    """

    together = True

    def __init__(
        self, range: Sequence[float] = (-1.0, 1.0), levels: int = 256, num_components: int = 10
    ) -> None:
        super().__init__(range, levels)
        self.num_components = check_integer("num_components", num_components)

    def num_parameters(self, channels: int) -> int:
        return self.num_components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def num_uniforms(self, channels: int) -> int:
        return channels + 1

    def _split(self, parameters: Tensor, channels: int) -> tuple[Tensor, ...]:
        """log π `(…, M)`, and `(…, c, M)` each: μ̄, log s, and tanh α, a row a pair b < c."""
        pairs = channels * (channels - 1) // 2
        rows = parameters.unflatten(-1, (-1, self.num_components))
        logits, loc, log_scale, weights = rows.split([1, channels, channels, pairs], -2)
        log_weights = logits.squeeze(-2).log_softmax(-1)
        return log_weights, loc, log_scale.clamp(min=_LEAST_LOG_SCALE), weights.tanh()

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        log_pi, loc, log_scale, weights = self._split(parameters.movedim(1, -1), x.shape[1])
        index = self.index(x).movedim(1, -1)
        seen = (index * (2 / (self.levels - 1)) - 1)[..., None]
        total, row = log_pi, 0
        for c in range(x.shape[1]):
            mean = loc[..., c, :]
            for b in range(c):
                mean = mean + weights[..., row, :] * seen[..., b, :]
                row += 1
            total = total + self._log_mass(seen[..., c, :], mean, log_scale[..., c, :])
        return total.logsumexp(-1)

    def _log_mass(self, x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Of the cells of x in [-1, 1] under logistics."""
        half = 1 / (self.levels - 1)
        inverse = (-log_scale).exp()
        upper, lower = (x + half - mean) * inverse, (x - half - mean) * inverse
        # log(σ(u) − σ(l)) = log σ(u) + log σ(−l) + log(1 − exp(l − u)): no difference of sigmoids,
        # which is 0 far from the mean.
        width = torch.log(-torch.expm1(-2 * half * inverse))
        below, above = logsigmoid(upper), logsigmoid(-lower)
        inside = below + above + width
        edges = torch.where(x < half - 1, below, above)
        return torch.where((x < half - 1) | (x > 1 - half), edges, inside)

    def noise(self, uniform: Tensor) -> Tensor:
        """The component's number as it is, the channels' as a draw of a standard logistic."""
        tiny = torch.finfo(uniform.dtype).tiny
        return torch.cat([uniform[..., :1], uniform[..., 1:].clamp(min=tiny).logit()], -1)

    def draw(self, parameters: Tensor, noise: Tensor, out: Tensor) -> None:
        channels, pairs, half = out.shape[1], 0, (self.levels - 1) / 2
        rows = parameters.unflatten(1, (-1, self.num_components))
        chosen = _first_above(rows[:, 0], noise[:, :1]).clamp_(max=self.num_components - 1)
        # Of the pixel's component alone, all at once.
        own = rows.gather(2, chosen[..., None].expand(-1, rows.shape[1], 1)).squeeze(2)
        loc, log_scale, weights = own[:, 1:].split(
            [channels, channels, own.shape[1] - 1 - 2 * channels], 1
        )
        loc = torch.addcmul(loc, log_scale.clamp_(min=_LEAST_LOG_SCALE).exp_(), noise[:, 1:])
        weights = weights.tanh()
        for c in range(channels):
            x = loc[:, c]
            if c:
                x = x + (weights[:, pairs : pairs + c] * out[:, :c]).sum(1)
                pairs += c
            index = ((x + 1) * half).round_().clamp_(0, self.levels - 1)
            torch.div(index, half, out=out[:, c]).sub_(1)
