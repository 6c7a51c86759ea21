"""Layers of one kind in a row, as one node of autograd's graph."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.contracts import Cost
from flexgen.differentiation import is_transformed
from flexgen.flows.conditioner import Conditioner, Pass
from flexgen.flows.transform import Mapped, Transform
from flexgen.flows.updates import Saved, Update

Tape = list[tuple[Tensor, Saved | None]]
"""Of each layer in the order they ran: what its network saw, and what its update saved."""

Layer = tuple[Tensor, Tensor | None, Saved | None, Tensor]
"""A layer's image, its log-scale, what its update saved and what its network saw."""


class Stack(Transform):
    """Layers that each move one part of the coordinates by a network that sees another.

    Layer l takes the coordinates in the order `orders[l]`, splits them into P parts, and moves
    part l mod P given the part before it. With two parts that is a coupling; with one, and masked
    networks, an autoregressive map. Inside, codes are columns: parts, units and outputs are
    consecutive rows, and nothing is indexed between layers of the same order.

    All layers are one node of the graph with its derivative written out, for small networks spend
    their time in dispatch, not in products. Second derivatives are autograd's, of the same layers
    traced; a sequential direction has none, and refuses. Under `torch.compile` the layers are
    traced and differentiated as usual, but for directions that are sequential and networks with
    blocked masks, which stay as they are. Autocast is off inside: a log-determinant in half
    precision is none.

    Args:
        nets: one conditioner for all layers; or, for parts of different sizes, one for each part.
        parts: sizes of the parts.
        update: how a network's outputs move a code.
        orders: `(num_layers, features)`, a permutation for each layer.
        context_features: size of the context.

    Raises:
        ValueError: when called with a code of another size, or a context where there is none.
    """

    nets: Sequence[Conditioner]
    orders: Tensor
    moves: Tensor

    def __init__(
        self, nets: Sequence[Conditioner], parts: Sequence[int], update: Update, orders: Tensor,
        context_features: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(orders.shape[1], context_features)
        self.nets = nn.ModuleList(nets)  # type: ignore[assignment]
        self.parts, self.update = list(parts), update
        self.register_buffer("orders", orders)
        self.register_buffer("moves", orders.new_empty(2, len(orders) + 1, self.features), False)
        self._follow_orders()

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        return self._map(eps, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        return self._map(z, context, inverse=True)

    def _map(self, code: Tensor, context: Tensor | None, inverse: bool) -> Mapped:
        if code.shape[-1] != self.features:
            raise ValueError(
                f"a code must be (*batch, {self.features}), got {tuple(code.shape)}; "
                "give the flow and the model the same `latent_dim`"
            )
        if (context.shape[-1] if context is not None else 0) != self.context_features:
            raise ValueError(
                f"`context` must be (*batch, {self.context_features}), or None for 0, got "
                f"{None if context is None else tuple(context.shape)}; "
                "set `context_features` where the flow is built"
            )
        if context is not None:
            code = code.expand(*torch.broadcast_shapes(code.shape[:-1], context.shape[:-1]), -1)
        if not torch.is_autocast_enabled(code.device.type):
            return self._map_rows(code, context, inverse)
        with torch.autocast(code.device.type, enabled=False):
            return self._map_rows(code, context, inverse)

    def _map_rows(self, code: Tensor, context: Tensor | None, inverse: bool) -> Mapped:
        batch, dtype = code.shape[:-1], self.nets[0].weight0.dtype
        columns = code.reshape(-1, self.features).to(dtype).mT
        context = None if context is None else context.to(dtype)
        tensors = [t for net in self.nets for t in net.tensors(context, batch)]
        # One node for the whole flow is no operation that a program or a transform can hold.
        written = torch.jit.is_tracing() or is_transformed()
        compiled = torch.compiler.is_compiling()
        if not written and not compiled:
            rows, ladj = _Node.apply(self, inverse, columns, *tensors)
        elif written or self._traceable(inverse):
            passes = self.passes(tensors, inverse, traced=True)
            rows, ladj = self.run(columns, passes, None)
        else:
            rows, ladj = _untraced(self, inverse, columns, *tensors)
        return rows.view(*batch, self.features), ladj.view(batch)

    def _traceable(self, inverse: bool) -> bool:
        """Whether a compiler gains: by no loop over coordinates, and by no blocks of a mask."""
        cost = self.inverse_cost if inverse else self.forward_cost
        return cost is Cost.PARALLEL and not any(any(net.blocks) for net in self.nets)

    def passes(self, tensors: Sequence[Tensor], inverse: bool, **how: Any) -> list[Pass]:
        """The networks on the tensors of one call; `how` as for :class:`Pass`."""
        size = len(tensors) // len(self.nets)
        return [
            Pass(net, tensors[i * size : (i + 1) * size], inverse, **how)
            for i, net in enumerate(self.nets)
        ]

    def run(self, columns: Tensor, passes: Sequence[Pass], tape: Tape | None) -> Mapped:
        """All layers on codes `(features, n)`, to `(n, features)` and log |det J|, `(n,)`.

        The tape is filled where a backward will follow.
        """
        inverse = passes[0].inverse
        first, *moves, last = self._moves_of(inverse)
        parts = self._split([columns.contiguous() if first is None else columns], first)
        log_scales = []
        for layer, move in zip(self._layers(inverse), [None, *moves], strict=True):
            if move is not None:
                parts = self._split(parts, move)
            row, which = divmod(layer, len(passes))
            part = layer % len(parts)
            parts[part], log_scale, saved, seen = self.layer(
                passes[which], row, parts[part - 1], parts[part]
            )
            if log_scale is not None:
                log_scales.append(log_scale)
            if tape is not None:
                tape.append((seen, saved))
        image = torch.cat(parts).mT
        image = image.contiguous() if last is None else image.index_select(1, last)
        ladj = torch.cat(log_scales).sum(0) if log_scales else image.new_zeros(len(image))
        return image, ladj

    def pull(
        self, grad: Tensor, grad_ladj: Tensor, passes: Sequence[Pass], tape: Tape, to_code: bool
    ) -> list[Tensor | None]:
        """Gradients of the codes, None unless `to_code`, and of all tensors."""
        inverse = passes[0].inverse
        first, *moves, last = self._moves_of(not inverse)
        parts = self._split([grad.mT], first)
        for run in passes:
            run.start_backward(grad_ladj)
        seen: list[list[Any]] = [[None] * len(run.weights) for run in passes]
        layers = self._layers(not inverse)
        for layer, move, (code, saved) in zip(layers, [None, *moves], reversed(tape), strict=True):
            if move is not None:
                parts = self._split(parts, move)
            row, which = divmod(layer, len(passes))
            part, run, seen[which][row] = layer % len(parts), passes[which], code
            last_one = layer == layers[-1] and not to_code
            self.layer_backward(run, row, saved, parts, part, not last_one)
        grads = [
            grad for run, codes in zip(passes, seen, strict=True) for grad in run.finish(codes)
        ]
        return [self._together(parts, last) if to_code else None, *grads]

    def layer(self, run: Pass, row: int, seen: Tensor, code: Tensor) -> Layer:
        """One layer on the part that moves, `code`, given the part that is seen."""
        return *self.update.apply(run(row, seen), code, run.gains[row], run.inverse), seen

    def layer_backward(
        self, run: Pass, row: int, saved: Saved | None, grads: list[Tensor], part: int, seen: bool
    ) -> None:
        """Its derivative: `grads`, of the parts, go from those of its image to its code's.

        With `seen` those of the part that is seen too.
        """
        grads[part], grad_s = self.update.backward(
            grads[part], run.grad_ladj, saved, run.gains[row], run.inverse, run.outs[row]
        )
        if grad_s is not None and saved is not None:
            run.log_scales[row] = grad_s, saved.squashed
        run.backward(row)
        if seen:
            grads[part - 1] = run.add_input_grad(row, grads[part - 1])

    def _layers(self, inverse: bool) -> range:
        layers = range(len(self.orders))
        return layers[::-1] if inverse else layers

    def _split(self, parts: list[Tensor], move: Tensor | None) -> list[Tensor]:
        return list(self._together(parts, move).split(self.parts))

    def _together(self, parts: list[Tensor], move: Tensor | None) -> Tensor:
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return whole if move is None else whole.index_select(0, move)

    def _moves_of(self, inverse: bool) -> list[Tensor | None]:
        """Before each layer and after the last: which row comes from where; None: all stay."""
        moves, stays = self.moves[int(inverse)], self._stays[int(inverse)]
        return [None if stay else moves[step] for step, stay in enumerate(stays)]

    def _follow_orders(self) -> None:
        """Derive the moves between layers from the layers' orders."""
        natural = torch.arange(self.features, device=self.orders.device)
        for inverse, orders in enumerate((self.orders, self.orders.flip(0))):
            frames = [natural, *orders, natural]
            for step, (old, new) in enumerate(itertools.pairwise(frames)):
                self.moves[inverse, step] = old.argsort()[new]
        self._stays = (self.moves == natural).all(-1).tolist()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._follow_orders()


# torch.compiler.disable, but for the compiler's import, which takes as long as torch's own.
@torch._disable_dynamo
def _untraced(*args: Any) -> Mapped:
    image: Mapped = _Node.apply(*args)
    return image


class _Node(torch.autograd.Function):
    """A stack on columns, as one node; the derivative is the stack's own."""

    @staticmethod
    def forward(ctx: Any, stack: Stack, inverse: bool, columns: Tensor, *tensors: Tensor) -> Mapped:
        needed = any(ctx.needs_input_grad)
        passes = stack.passes(tensors, inverse, keep=columns.shape[1] if needed else None)
        tape: Tape | None = [] if needed else None
        rows, ladj = stack.run(columns, passes, tape)
        ctx.stack, ctx.passes, ctx.tape = stack, passes, tape
        ctx.save_for_backward(columns, *tensors)
        return rows, ladj

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_ladj: Tensor) -> tuple[Tensor | None, ...]:
        # Raises if a weight was changed since the forward.
        inputs, stack, inverse = ctx.saved_tensors, ctx.stack, ctx.passes[0].inverse
        again = torch.is_grad_enabled()  # as with create_graph=True
        with torch.autocast(grad.device.type, enabled=False):
            if again or is_transformed(grad):
                with torch.enable_grad():
                    grads = _traced(stack, inverse, inputs, (grad, grad_ladj), again)
            else:
                to_code = ctx.needs_input_grad[2]
                grads = stack.pull(grad, grad_ladj, ctx.passes, ctx.tape, to_code)
        return None, None, *grads


def _traced(
    stack: Stack, inverse: bool, inputs: Sequence[Tensor], grads: Mapped, again: bool
) -> list[Tensor | None]:
    """The gradients of all inputs as autograd derives them, to be differentiated `again` or not."""
    image = stack.run(inputs[0], stack.passes(inputs[1:], inverse, traced=True), None)
    moved = [pair for pair in zip(image, grads, strict=True) if pair[0].requires_grad]
    wanted = [i for i, given in enumerate(inputs) if given.requires_grad]
    found = torch.autograd.grad(
        [x for x, _ in moved], [inputs[i] for i in wanted], [grad for _, grad in moved],
        create_graph=again, allow_unused=True,
    )  # fmt: skip
    whole: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        whole[i] = gradient
    return whole
