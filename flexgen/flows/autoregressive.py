"""Inverse autoregressive maps by masked networks; their inverse, coordinate by coordinate."""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flexgen.checks import check_integer, check_one_of
from flexgen.contracts import Cost
from flexgen.flows.conditioner import Conditioner, Pass
from flexgen.flows.stack import Layer, Stack
from flexgen.flows.updates import Additive, Affine, Gated, Saved, Update


class Autoregressive(Stack):
    r"""A stack of inverse autoregressive steps (IAF): base to z takes one pass.

    .. math:: z_i = σ_i ε_i + m_i, \quad (σ_i, m_i) = f_i(ε_{<i}, c), \quad
        \log |\det ∂z/∂ε| = \sum_i \log σ_i

    f is a masked network (MADE). Its hidden units are sorted by degree, the number of coordinates
    that they may see: masks are staircases then, whose empty blocks are not multiplied, and the
    inverse computes each unit once, when the last coordinate that it sees is known.

    The inverse, and so the density of a point from outside, takes `features` steps a layer
    (`inverse_cost`). Wrapped in :class:`~flexgen.flows.Inverse` this is MAF: its density takes one
    pass, its draws are sequential. Both directions have gradients.

    Args:
        features: d, at least 2.
        num_layers: how many steps, at least 1.
        hidden_features: width of each hidden layer of f.
        order: of the coordinates: "reversed": natural, and reversed after each step; "natural";
            "random": drawn at construction for each step.
        update: "affine": log σ bounded, g tanh(·) with a learned gain g; "gated": σ = sigmoid(s +
            bias), z = σ ε + (1 − σ) m; "additive": σ = 1, the volume is preserved.
        gate_bias: of the gate, +1 or +2.
        context_features: size of the context.
        activation: of f: "ReLU", "ELU" or "Tanh".

    Raises:
        ValueError: for sizes out of range, an unknown order or update.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow",
    2016, eq. 10 (affine), eq. 12 to 14 and Algorithm 1 (gated); Germain et al., "MADE", 2015,
    eq. 13 to 15 (masks); Papamakarios, Pavlakou & Murray, "Masked autoregressive flow", 2017.
    Departures: the degrees of hidden units are dealt in turn, not drawn. As MAF, shift and scale
    act on the way to the base, u = σ x + m, where Papamakarios et al. have u = (x − μ) e^{−α}.

    Example:
        >>> flow = Autoregressive(4, num_layers=2, context_features=3)
        >>> z, ladj = flow(torch.randn(5, 7, 4), torch.randn(7, 3))
        >>> z.shape, ladj.shape
        (torch.Size([5, 7, 4]), torch.Size([5, 7]))
    """

    inverse_cost = Cost.SEQUENTIAL

    def __init__(
        self,
        features: int,
        *,
        num_layers: int = 8,
        hidden_features: Sequence[int] = (512, 512),
        order: Literal["reversed", "natural", "random"] = "reversed",
        update: Literal["affine", "gated", "additive"] = "affine",
        gate_bias: float = 2.0,
        context_features: int = 0,
        activation: str = "ReLU",
    ) -> None:
        remedy = "an autoregressive map needs another: set `latent_dim=20`"
        check_integer("features", features, 2, remedy)
        check_integer("num_layers", num_layers, 1, "set `prior.num_layers=3`")
        updates: dict[str, Update] = {
            "affine": Affine(), "gated": Gated(gate_bias), "additive": Additive(),
        }  # fmt: skip
        check_one_of("update", update, updates)
        step = updates[update]
        degrees = degrees_of(features, hidden_features, step.num_outputs, context_features > 0)
        net = Conditioner(
            num_layers, features, hidden_features, features, step.num_outputs,
            context_features=context_features, activation=activation, has_gain=step.has_gain,
            masks=[below[:, None] >= above for above, below in itertools.pairwise(degrees)],
        )  # fmt: skip
        orders = _orders(features, num_layers, order)
        super().__init__([net], [features], step, orders, context_features)
        # How many units of each product's result may see i coordinates at most, for i = 0 … d.
        counts = range(features + 1)
        self._reach = [[int((degree <= seen).sum()) for seen in counts] for degree in degrees]

    def layer(self, run: Pass, row: int, seen: Tensor, code: Tensor) -> Layer:
        if not run.inverse:
            return super().layer(run, row, seen, code)
        # What is written in place autograd cannot derive; a program that was traced need not be.
        derived = run.traced and not torch.jit.is_tracing()
        out = (self._solve_by_passes if derived else self._solve)(run, row, code)
        image, log_scale, saved = self.update.apply(out, code, run.gains[row], True)
        return image, log_scale, saved, image

    def layer_backward(
        self, run: Pass, row: int, saved: Saved | None, grads: list[Tensor], part: int, seen: bool
    ) -> None:
        if not run.inverse:
            super().layer_backward(run, row, saved, grads, part, seen)
        else:
            grads[part] = self._solve_backward(run, row, saved, grads[part])

    def _solve(self, run: Pass, row: int, code: Tensor) -> Tensor:
        """The outputs for the x whose image is `code`, each unit computed once, by degree."""
        weights, biases, gain = run.weights[row], run.biases[row], run.gains[row]
        x = torch.empty_like(code)
        units = [x, *(w.new_empty(len(w), code.shape[1]) for w in weights)]
        if run.hidden[row][0] is not None:
            units[1:-1] = run.hidden[row]
        outputs = self.update.num_outputs
        for i in range(self.features):
            for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                top, bottom = self._exactly(k + 1, i)
                if top == bottom:
                    continue
                seen, rows = units[k][: self._reach[k][i]], units[k + 1][top:bottom]
                torch.addmm(bias[top:bottom], weight[top:bottom, : len(seen)], seen, out=rows)
                if k < len(weights) - 1:
                    run.activate(rows)
            one, out = slice(i, i + 1), units[-1][outputs * i : outputs * (i + 1)]
            own_gain = None if gain is None else gain[one]
            x[one] = self.update.apply(out, code[one], own_gain, True)[0]
        return units[-1]

    def _solve_by_passes(self, run: Pass, row: int, code: Tensor) -> Tensor:
        """As :meth:`_solve`, by a pass of the whole network for each coordinate."""
        outputs, gain = self.update.num_outputs, run.gains[row]
        x = torch.zeros_like(code)
        for i in range(self.features):
            one, out = slice(i, i + 1), run(row, x)[outputs * i : outputs * (i + 1)]
            own_gain = None if gain is None else gain[one]
            found = self.update.apply(out, code[one], own_gain, True)[0]
            x = torch.cat([x[:i], found, x[i + 1 :]])
        return run(row, x)

    def _solve_backward(self, run: Pass, row: int, saved: Saved | None, grad: Tensor) -> Tensor:
        """The derivative of `_solve` and its update, by falling degree; gives the code's."""
        transposed, pre = run.transposed[row][0], run.grads[row][0]
        grad, gain, grads_s = grad.clone(), run.gains[row], []
        grad_code = torch.empty_like(grad)
        for i in range(self.features - 1, -1, -1):
            self._units_backward(run, row, i + 1)
            one, after = slice(i, i + 1), self._reach[1][i]
            grad[one].addmm_(transposed[one, after:], pre[after:])
            own = None if saved is None else Saved(*(value[one] for value in saved))
            own_gain = None if gain is None else gain[one]
            outs = [out[one] for out in run.outs[row]]
            grad_code[one], grad_s = self.update.backward(
                grad[one], run.grad_ladj, own, own_gain, True, outs
            )
            if grad_s is not None:
                grads_s.append(grad_s)
        self._units_backward(run, row, 0)
        if grads_s and saved is not None:
            run.log_scales[row] = torch.cat(grads_s[::-1]), saved.squashed
        return grad_code

    def _units_backward(self, run: Pass, row: int, degree: int) -> None:
        """The gradients of the hidden units of one degree, once those that see them are known."""
        transposed, grads = run.transposed[row], run.grads[row]
        for k in range(len(grads) - 2, -1, -1):
            top, bottom = self._exactly(k + 1, degree)
            if top < bottom:
                after, rows = self._exactly(k + 2, degree)[0], grads[k][top:bottom]
                torch.mm(transposed[k + 1][top:bottom, after:], grads[k + 1][after:], out=rows)
                run.activate_backward(rows, run.hidden[row][k][top:bottom])

    def _exactly(self, k: int, degree: int) -> tuple[int, int]:
        """The rows of units k (0: inputs, last: outputs) that see so many coordinates."""
        reach = self._reach[k]
        return reach[degree - 1] if degree else 0, reach[degree]


def degrees_of(
    features: int, hidden_features: Sequence[int], num_outputs: int, has_context: bool
) -> list[Tensor]:
    """Of inputs, hidden units and outputs: the number of coordinates that each depends on."""
    # Units that depend on the context alone have degree 0; without one they would be constants.
    lowest = 0 if has_context else 1
    hidden = [
        torch.arange(width).remainder(features - lowest).add(lowest).sort().values
        for width in hidden_features
    ]
    outputs = torch.arange(features).repeat_interleave(num_outputs)
    return [torch.arange(1, features + 1), *hidden, outputs]


def _orders(features: int, num_layers: int, order: str) -> Tensor:
    if order == "random":
        return torch.stack([torch.randperm(features) for _ in range(num_layers)])
    orders = torch.arange(features).repeat(num_layers, 1)
    if order == "reversed":
        orders[1::2] = orders[1::2].flip(1)
    elif order != "natural":
        raise ValueError(f"`order` must be reversed, natural or random, got {order!r}")
    return orders
