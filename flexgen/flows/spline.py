"""Spline couplings: half of the coordinates moves along rational-quadratic splines."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flexgen.checks import check_integer, check_positive, check_sizes
from flexgen.flows.transform import Mapped, Transform

# Of a bin's share of the box, and of a slope: less, and the inverse loses its digits.
_SMALLEST = 1e-3
# softplus of it is 1 - _SMALLEST: a slope is 1 at the start.
_UNIT = math.log(math.expm1(1 - _SMALLEST))
_START = 0.01


class SplineCoupling(Transform):
    r"""The second half of z moves by monotonic splines that a network of the first half makes.

    Each is the identity outside of [−B, B], and inside a quotient of quadratics on each of K bins,
    whose knots and slopes are the network's outputs. Both directions take one pass, and their
    derivatives are in closed form. It starts near the identity. One coupling moves one half: put
    :class:`LULinear` between two.

    Args:
        features: d, at least 2.
        hidden_features: width of each hidden layer of the network.
        bins: K, at least 2.
        bound: B, above 0.

    Raises:
        ValueError: for sizes out of range.

    Source: Durkan, Bekasov, Murray & Papamakarios, "Neural spline flows", 2019, section 3.1.
    """

    def __init__(
        self, features: int, *, hidden_features: Sequence[int] = (32,), bins: int = 4,
        bound: float = 5.0,
    ) -> None:  # fmt: skip
        check_integer("features", features, 2, "a coupling moves one part given the other")
        super().__init__(features)
        self.bins = check_integer("bins", bins, 2)
        self.bound = float(check_positive("bound", bound))
        self.seen = features // 2
        widths = [self.seen, *check_sizes("hidden_features", hidden_features)]
        hidden = [(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(widths)]
        self.hidden = nn.Sequential(*itertools.chain(*hidden))
        self.last = nn.Linear(widths[-1], (3 * bins - 1) * (features - self.seen))
        with torch.no_grad():
            self.last.weight.mul_(_START)
            self.last.bias.zero_()

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        return self._moved(eps, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        return self._moved(z, inverse=True)

    def _moved(self, code: Tensor, inverse: bool) -> Mapped:
        seen, rest = code.reshape(-1, self.features).tensor_split([self.seen], 1)
        # As columns: sums over bins run over whole rows.
        h = self.hidden(seen).mT
        out = torch.addmm(self.last.bias[:, None], self.last.weight, h)
        out = out.view(3 * self.bins - 1, rest.shape[1], -1)
        image, ladj = _spline(rest.mT, out, self.bound, inverse)
        image = torch.cat([seen, image.mT], 1)
        return image.view(code.shape), ladj.sum(0).view(code.shape[:-1])


def _spline(x: Tensor, out: Tensor, bound: float, inverse: bool) -> Mapped:
    """Images of x `(m, n)` and log-slopes, given the outputs `(3K − 1, m, n)`.

    Few calls, as those of small networks cost more than what they calculate: both axes at once, and
    one look-up for all that a bin has.
    """
    bins = (len(out) + 1) // 3
    share = out[: 2 * bins].reshape(2, bins, -1).softmax(1)
    width = (2 * bound * (1 - _SMALLEST * bins)) * share + 2 * bound * _SMALLEST
    below = torch.ones(bins, bins, device=x.device, dtype=x.dtype).tril(-1)
    start = below @ width - bound
    inner = _SMALLEST + softplus(out[2 * bins :].flatten(1) + _UNIT)
    end = torch.ones_like(inner[:1])  # where the identity goes on
    slopes = torch.cat([end, inner, inner, end]).view(2, bins, -1)
    flat = x.reshape(-1)
    cut = flat.clamp(-bound, bound)
    bin = (cut >= start[int(inverse), 1:]).sum(0)
    of_bins = torch.cat([start, width, slopes])
    x0, y0, w, h, d0, d1 = of_bins.gather(1, bin.expand(6, 1, -1)).squeeze(1)
    s = h / w
    bend = d0 + d1 - 2 * s
    if inverse:
        # The root in [0, 1] of the quadratic, in the form that does not cancel.
        above = cut - y0
        turn = above * bend
        a, b, c = h * (s - d0) + turn, h * d0 - turn, -s * above
        t = -2 * c / (b + (b * b - 4 * a * c).clamp_min(0).sqrt())
    else:
        t = (cut - x0) / w
    u = 1 - t
    both = t * u
    flatter = s + bend * both
    image = torch.addcmul(x0, t, w) if inverse else y0 + h * t * (s * t + d0 * u) / flatter
    ratio = s / flatter
    ladj = (ratio * ratio * (d1 * t * t + 2 * s * both + d0 * u * u)).log()
    inside = flat.abs() < bound
    image = torch.where(inside, image, flat)
    ladj = torch.where(inside, -ladj if inverse else ladj, torch.zeros_like(ladj))
    return image.view(x.shape), ladj.view(x.shape)
