"""How a network's outputs move a code: affine, gated or additive, with the derivatives.

Codes are columns: x, next to the base, and y are `(m, n)`. The network's outputs for them are
`(m · num_outputs, n)`, those of one coordinate next to each other.
"""

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class Saved(NamedTuple):
    """What the backward needs, each `(m, n)`."""

    offset: Tensor
    """x less the point that the map scales about."""
    scale: Tensor
    """Derivative of the image by the input, in the direction taken."""
    squashed: Tensor
    """What the log-scale is made of: tanh(r), or the gate."""


Image = tuple[Tensor, Tensor | None, Saved | None]


class Update(abc.ABC):
    """One step y = f(x; outputs), invertible in x for any outputs.

    Attributes:
        num_outputs: how many outputs of a network move one coordinate.
        has_gain: whether the step has a learned gain, `(m, 1)`.
    """

    num_outputs = 2
    has_gain = False

    @abc.abstractmethod
    def apply(self, out: Tensor, code: Tensor, gain: Tensor | None, inverse: bool) -> Image:
        """The image of x, or of y if `inverse`, for the network's outputs `out`.

        The gain's sign is turned if `inverse`. Returns the image; the log-scale of the direction
        taken, None where it is 0 throughout; what the backward needs.
        """

    def backward(
        self, grad: Tensor, grad_ladj: Tensor, saved: Saved | None, gain: Tensor | None,
        inverse: bool, grad_outs: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Gradients of the code and, if there is a gain, of the log-scale; of `out`: written.

        Args:
            grad: of the image, `(m, n)`.
            grad_ladj: of log |det J| of the direction taken, `(n,)`.
            saved: what `apply` returned; gain and direction are those given to it.
            grad_outs: where the gradients of `out` go, apart: one `(m, n)` for each output.
        """
        grad_code, grad_s = grad, None
        if saved is not None:
            offset, scale, squashed = saved
            grad_code = grad * scale
            grad_s = torch.addcmul(grad_ladj, grad if inverse else grad_code, offset)
            self._scale_backward(grad_s, squashed, gain, inverse, grad_outs[0])
        self._shift_backward(grad, grad_code, inverse, grad_outs[-1])
        return grad_code, grad_s if self.has_gain else None

    def _shift_backward(self, grad: Tensor, grad_code: Tensor, inverse: bool, out: Tensor) -> None:
        if inverse:
            torch.neg(grad_code, out=out)
        else:
            out.copy_(grad)

    def _scale_backward(
        self, grad_s: Tensor, squashed: Tensor, gain: Tensor | None, inverse: bool, out: Tensor
    ) -> None:
        raise NotImplementedError


class Affine(Update):
    r"""y = eˢ x + t with the bounded log-scale s = g tanh(r); outputs r and t.

    The gain g is learned: no network can make the scale explode, and a step that needs a wide
    range can have it.

    Source: Dinh et al., 2017, eq. 7 and section 4.1 (a learned scale times tanh); Kingma et al.,
    2016, eq. 10, without a bound.
    """

    has_gain = True

    def apply(self, out: Tensor, code: Tensor, gain: Tensor | None, inverse: bool) -> Image:
        assert gain is not None
        squashed, t = out[0::2].tanh(), out[1::2]
        log_scale = squashed * gain
        scale = log_scale.exp()
        image = (code - t) * scale if inverse else torch.addcmul(t, code, scale)
        return image, log_scale, Saved(image if inverse else code, scale, squashed)

    def _scale_backward(
        self, grad_s: Tensor, squashed: Tensor, gain: Tensor | None, inverse: bool, out: Tensor
    ) -> None:
        assert gain is not None
        _tanh_backward(grad_s * gain, squashed, grad_input=out)


class Gated(Update):
    r"""y = σ x + (1 − σ) m with the gate σ = sigmoid(r + bias); outputs r and m.

    Each step is a contraction towards m, at first a small one: it cannot diverge, whatever the
    network says.

    Args:
        bias: of the gate, +1 or +2 so that a step starts near the identity.

    Source: Kingma et al., 2016, eq. 13 and 14, and its remark on the forget gate's bias.
    """

    def __init__(self, bias: float = 2.0) -> None:
        self.bias = float(bias)

    def apply(self, out: Tensor, code: Tensor, gain: Tensor | None, inverse: bool) -> Image:
        log_gate, m = functional.logsigmoid(out[0::2] + self.bias), out[1::2]
        log_scale = -log_gate if inverse else log_gate
        scale, offset = log_scale.exp(), code - m
        moved = offset * scale
        gate = log_gate.exp() if inverse else scale
        return m + moved, log_scale, Saved(moved if inverse else offset, scale, gate)

    def _scale_backward(
        self, grad_s: Tensor, squashed: Tensor, gain: Tensor | None, inverse: bool, out: Tensor
    ) -> None:
        torch.mul(grad_s, squashed - 1 if inverse else 1 - squashed, out=out)

    def _shift_backward(self, grad: Tensor, grad_code: Tensor, inverse: bool, out: Tensor) -> None:
        torch.sub(grad, grad_code, out=out)


class Additive(Update):
    r"""y = x + t: the volume is preserved, log |det J| = 0; output t.

    Source: Dinh, Krueger & Bengio, "NICE: Non-linear independent components estimation", 2014.
    """

    num_outputs = 1

    def apply(self, out: Tensor, code: Tensor, gain: Tensor | None, inverse: bool) -> Image:
        return (code - out if inverse else code + out), None, None
