"""Any program as layers: what it computes is recorded, and put together again of torch's own."""

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from flexgen.reversal.passes import Generate, NoFastPass

aten = torch.ops.aten

# Codes in a recording: a prime, so that a size that is a multiple of it counts codes.
_BATCH = 29

_BATCH_NORMS = (
    aten.native_batch_norm.default, aten.cudnn_batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
)  # fmt: skip
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_SAME = (aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)
_PLAIN: dict[Any, type[nn.Module]] = {
    aten.relu.default: nn.ReLU, aten.tanh.default: nn.Tanh, aten.sigmoid.default: nn.Sigmoid,
}  # fmt: skip


@torch.no_grad()
def as_layers(
    generate: Generate, z: Tensor, *context: Tensor, batch_size: int | None = None
) -> nn.Module:
    """A module of the same function as `generate`, whatever that is made of.

    One pass is recorded as torch's operators: TorchScript, an exported program, a module or a
    function all come to that. What does not follow from the codes is computed now, a weight norm
    for one. Of the rest, linear layers, convolutions, batch norms, ReLU, tanh, sigmoid and views
    become modules, in an `nn.Sequential` where one follows another; every other operator stays.
    Casts between floating types are left out: the copy has one precision.

    Args:
        generate: codes to data.
        z: some codes, `(batch, *latent_shape)`.
        *context: of each code, if `generate` takes one.
        batch_size: so many codes `generate` takes at once, and no other number; None: any.

    Returns:
        A module that takes any number of codes and holds the weights themselves, not copies.

    Raises:
        NoFastPass: if it draws random numbers, or goes another way for other codes; other errors
            of torch where it cannot be recorded.
    """
    # Not before they are needed: they take sympy and the compiler along, a second of work.
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    size = batch_size or _BATCH
    rows = torch.arange(size, device=z.device) % len(z)
    given = [value[rows] for value in (z, *context)]
    try:
        recorded = make_fx(functionalize(lambda *given: generate(*given)))(*given)
    except RuntimeError as error:
        if "value out of a tracing tensor" in str(error):
            raise NoFastPass("it goes another way for other codes") from error
        raise
    return _Builder(size, batch_size is None).build(recorded)


class _Builder:
    """Puts a recording together again.

    Args:
        size: number of codes in the recording.
        prime: whether no size is a multiple of it by chance.
    """

    def __init__(self, size: int, prime: bool) -> None:
        self.size, self.prime = size, prime
        self.root, self.graph = nn.Module(), fx.Graph()
        self.known: dict[fx.Node, Any] = {}  # new nodes, and constants, by the recording's nodes
        self.shapes: dict[fx.Node, torch.Size] = {}

    def build(self, recorded: fx.GraphModule) -> nn.Module:
        recorded.graph.eliminate_dead_code()
        for node in recorded.graph.nodes:
            if node.op == "placeholder":
                self.known[node] = self.graph.placeholder(node.name)
            elif node.op == "get_attr":
                self.known[node] = getattr(recorded, str(node.target)).detach()
            elif node.op == "output":
                (made,) = node.all_input_nodes
                self.graph.output(self._node(self.known[made]))
            else:
                self.known[node] = self._step(node)
            value = node.meta.get("val", node.meta.get("tensor_meta"))
            if value is not None and hasattr(value, "shape"):
                self.shapes[node] = value.shape
        return self._chained()

    def _step(self, node: fx.Node) -> Any:
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise NoFastPass("it draws random numbers")
        mapped = [self.known[one] for one in node.all_input_nodes]
        varies = any(isinstance(value, fx.Node) for value in mapped)
        if not varies and not self._counts((node.args, node.kwargs)):
            return target(*self._old(node.args), **self._old(node.kwargs))
        x = self.known[node.args[0]] if isinstance(node.args[0], fx.Node) else None
        if target in _SAME or (target is aten._to_copy.default and self._floating(node)):
            return x
        if target is operator.getitem and cast(fx.Node, node.args[0]).target in _BATCH_NORMS:
            return x  # of the first; nobody reads the other two in eval mode
        if (layer := self._layer(node)) is not None:
            data = node.args[1 if target is aten.addmm.default else 0]
            return self._call(layer, self.known[cast(fx.Node, data)])
        args, kwargs = (
            self._sized(fx.map_arg(value, lambda one: self._node(self.known[one])))
            for value in (node.args, node.kwargs)
        )
        if target in _VIEWS:  # of what lies in memory in another way than it did
            target = aten.reshape.default
        return self.graph.call_function(target, args, kwargs)

    def _layer(self, node: fx.Node) -> nn.Module | None:
        """The module that does what a node does to its data; None if there is none."""
        args, target = self._old(node.args), node.target
        if target in _PLAIN:
            return _PLAIN[target]()
        if target in _VIEWS:
            before, after = self._shape(node.args[0]), self._shape(node)
            if not before[0] == after[0] == self.size:
                return None
            if len(before) == 2:
                return nn.Unflatten(1, after[1:])
            return nn.Flatten() if len(after) == 2 else None
        if target is aten.addmm.default and not node.kwargs:
            bias, weight = args[0], args[2]
            return _linear(weight.mT, bias) if _constant(weight, bias) and bias.dim() == 1 else None
        if target is aten.mm.default:
            return _linear(args[1].mT, None) if _constant(args[1]) else None
        if target is aten.linear.default:
            weight, bias = args[1], args[2] if len(args) > 2 else None
            return _linear(weight, bias) if _constant(weight, bias) else None
        if target in (aten.convolution.default, aten._convolution.default):
            return _convolution(*args[1:9]) if _constant(*args[1:3]) else None
        if target in _BATCH_NORMS:
            weight, bias, mean, var = args[1:5]
            training = len(args) == 8 and args[5]
            if not training and mean is not None and _constant(weight, bias, mean, var):
                dims = len(self._shape(node.args[0]))
                return _batch_norm(dims, weight, bias, mean, var, args[-1])
        return None

    def _call(self, layer: nn.Module, x: Any) -> fx.Node:
        name = f"layer{len(self.graph.nodes)}"
        self.root.add_module(name, layer)
        return self.graph.call_module(name, (self._node(x),))

    def _node(self, value: Any) -> Any:
        """A node of the new graph for a value, constants among them."""
        if not isinstance(value, Tensor):
            return value
        name = f"constant{len(self.graph.nodes)}"
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def _old(self, args: Any) -> Any:
        """Arguments with constants in the place of the nodes that they come from."""
        return fx.map_arg(args, lambda one: self.known[one])

    def _shape(self, node: Any) -> torch.Size:
        return self.shapes[node] if node in self.shapes else node.meta["val"].shape

    def _floating(self, node: fx.Node) -> bool:
        before = cast(fx.Node, node.args[0]).meta["val"].dtype
        return before.is_floating_point and node.meta["val"].dtype.is_floating_point

    def _counts(self, value: Any, first: bool = False) -> bool:
        """Whether an argument of an operator, or one in it, is a number of codes."""
        if isinstance(value, dict):
            return any(map(self._counts, value.values()))
        if isinstance(value, list | tuple):
            return any(self._counts(one, i == 0) for i, one in enumerate(value))
        if type(value) is not int or value <= 0:
            return False
        return value % self.size == 0 if self.prime else first and value == self.size

    def _sized(self, value: Any, first: bool = False) -> Any:
        """An argument that takes any number of codes where it took that of the recording."""
        if isinstance(value, dict):
            return {name: self._sized(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._sized(one, i == 0) for i, one in enumerate(value))
        if not self._counts(value, first):
            return value
        count = self.graph.call_function(aten.sym_size.int, (self._codes, 0))
        times = value // self.size
        return count if times == 1 else self.graph.call_function(operator.mul, (count, times))

    @property
    def _codes(self) -> fx.Node:
        return next(node for node in self.graph.nodes if node.op == "placeholder")

    def _chained(self) -> nn.Module:
        """The module, rows of layers in it as sequences."""
        rows: list[list[fx.Node]] = []
        for node in self.graph.nodes:
            if node.op != "call_module":
                continue
            before = node.args[0]
            if rows and rows[-1][-1] is before and len(before.users) == 1:
                rows[-1].append(node)
            else:
                rows.append([node])
        for i, row in enumerate(rows):
            net = nn.Sequential(*(self.root.get_submodule(str(node.target)) for node in row))
            for node in row:
                delattr(self.root, str(node.target))
            self.root.add_module(f"row{i}", net)
            with self.graph.inserting_before(row[0]):
                whole = self.graph.call_module(f"row{i}", (row[0].args[0],))
            row[-1].replace_all_uses_with(whole)
            for node in reversed(row):
                self.graph.erase_node(node)
        if [node.op for node in self.graph.nodes] == ["placeholder", "call_module", "output"]:
            return self.root.get_submodule("row0").eval()
        return fx.GraphModule(self.root, self.graph).eval()


def _constant(*values: Any) -> bool:
    return all(value is None or isinstance(value, Tensor) for value in values)


def _holding(layer: nn.Module, **weights: Tensor | None) -> nn.Module:
    """A layer with these weights."""
    for name, weight in weights.items():
        held = None if weight is None else nn.Parameter(weight, requires_grad=False)
        setattr(layer, name, held)
    return layer


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias is not None, device="meta")
    return _holding(layer, weight=weight, bias=bias)


def _convolution(
    weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> nn.Module | None:  # fmt: skip
    if weight.dim() != 4:
        return None
    one, two = weight.shape[0], weight.shape[1] * groups
    kernel = (weight.shape[2], weight.shape[3])
    layer: nn.Module
    if transposed:
        layer = nn.ConvTranspose2d(
            one, two, kernel, tuple(stride), tuple(padding), tuple(output_padding), groups,
            bias is not None, tuple(dilation), device="meta",
        )  # fmt: skip
    else:
        layer = nn.Conv2d(
            two, one, kernel, tuple(stride), tuple(padding), tuple(dilation), groups,
            bias is not None, device="meta",
        )  # fmt: skip
    return _holding(layer, weight=weight, bias=bias)


def _batch_norm(
    dims: int, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> nn.Module | None:
    if dims not in (2, 4):
        return None
    kind = nn.BatchNorm1d if dims == 2 else nn.BatchNorm2d
    layer = kind(len(mean), eps, affine=False)
    layer.running_mean, layer.running_var = mean, var
    return _holding(layer, weight=weight, bias=bias)
