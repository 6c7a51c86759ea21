"""Paths between codes, straight and along the sphere.

From a to b, `(n, d)` each, by stops t in [0, 1], `(m,)`: codes `(n, m, d)`.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

# In float64: below it, two directions agree or are opposite as far as float32 codes can say.
_PARALLEL = 1e-7


def linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """(1 − t) a + t b: straight paths, which stay in any box that holds both ends."""
    return torch.lerp(a.unsqueeze(1), b.unsqueeze(1), t.unsqueeze(-1))


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    r"""Paths that turn at a constant rate, for codes of a normal prior.

    .. math:: z(t) = \big((1 − t) |a| + t |b|\big)
        \Big( \frac{\sin((1 − t) θ)}{\sin θ} \frac{a}{|a|}
        + \frac{\sin(t θ)}{\sin θ} \frac{b}{|b|} \Big), \quad θ = \angle(a, b)

    Nearly all draws of N(0, I) in d dimensions lie at a norm near √d, and the middle of a straight
    path between two of them at √(d/2), where next to none do. Ends in one direction are joined
    straight; of opposite ends, which every great circle through them joins, one circle is taken,
    the same each time; an end at 0 has no direction, and takes the other's.

    Source: Shoemake, "Animating rotation with quaternion curves", 1985, section 3.3; White,
    "Sampling generative networks", 2016, section 2.1. Departure: their formula takes a and b
    themselves, here it takes their directions, and the norm goes from |a| to |b| at a constant
    rate; for equal norms both are the same.

    Example:
        >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> slerp(a, b, torch.tensor([0.5]))
        tensor([[[1.4142, 1.4142]]])
    """
    start, end = a.double(), b.double()
    norms = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    u, v = (torch.where(norms[0] > 0, start, end), torch.where(norms[1] > 0, end, start))
    u, v = normalize(u), normalize(v)
    # By the arctangent: the arccosine of a product has no digits left where directions agree.
    angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
    # The formula, with v by its parts along u and across: sin θ, which may be 0, divides nothing.
    across = v - (u * v).sum(1, keepdim=True) * u
    length = across.norm(dim=1, keepdim=True)
    across = normalize(torch.where(length > _PARALLEL, across, _perpendicular(u)))
    t = t.double()
    turned = (angle.unsqueeze(1) * t).unsqueeze(-1)
    direction = turned.cos() * u.unsqueeze(1) + turned.sin() * across.unsqueeze(1)
    return (torch.lerp(*norms, t).unsqueeze(-1) * direction).to(a.dtype)


def _perpendicular(u: Tensor) -> Tensor:
    """A vector across each of the unit vectors `(n, d)`; 0 where there is only one dimension."""
    axis = torch.zeros_like(u).scatter_(1, u.abs().argmin(1, keepdim=True), 1.0)
    return axis - (u * axis).sum(1, keepdim=True) * u
