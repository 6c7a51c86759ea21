"""ONNX files as generators: the operators that generators are made of, by torch's own."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexgen.checks import first_line

Array = np.ndarray[Any, Any]


class OnnxNetwork(nn.Module):
    """An ONNX graph of one input, codes, and one output, data; its constants are parameters.

    Args:
        graph: of `onnx.ModelProto`.

    Raises:
        ValueError: for several inputs or outputs, and an operator that is not known here.
    """

    def __init__(self, graph: Any) -> None:
        from onnx import helper, numpy_helper

        super().__init__()
        held = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        inputs = [one for one in graph.input if one.name not in held]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ValueError(
                "an ONNX generator must take one input and give one output, got "
                f"{len(inputs)} and {len(graph.output)}; export a module that takes codes alone"
            )
        self.input, self.output = inputs[0].name, graph.output[0].name
        sizes = [size.dim_value for size in inputs[0].type.tensor_type.shape.dim[1:]]
        self.latent_shape = tuple(sizes) if sizes and all(sizes) else None
        self.steps: list[tuple[str, list[str], str, dict[str, Any]]] = []
        for node in graph.node:
            options = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            if node.op_type == "Constant":
                held[node.output[0]] = _constant(options, numpy_helper.to_array)
                continue
            if node.op_type not in _OPERATORS | _OF_SIZES:
                raise ValueError(
                    f"the ONNX operator {node.op_type} is not known here; export the generator "
                    "with torch.export.save, or give a function of your own that runs it"
                )
            self.steps.append((node.op_type, list(node.input), node.output[0], options))
        # Sizes and axes are numbers to torch; what is computed with is a tensor.
        self.sizes = {n: v for n, v in held.items() if v.ndim < 2 and v.dtype == np.int64}
        self.sizes |= {n: held[n] for kind, names, _, _ in self.steps if kind in ("Resize", "Pad")
                       for n in names[1:] if n in held}  # fmt: skip
        weights = [name for name in held if name not in self.sizes]
        self.names = {name: f"weight{i}" for i, name in enumerate(weights)}
        for name, where in self.names.items():
            self.register_buffer(where, torch.tensor(held[name]))

    def forward(self, z: Tensor) -> Tensor:
        """Data of codes."""
        values: dict[str, Any] = {"": None, self.input: z, **self.sizes}
        values |= {name: getattr(self, where) for name, where in self.names.items()}
        for kind, inputs, output, options in self.steps:
            given = [values[name] for name in inputs]
            sizes = kind == "Shape" or all(isinstance(one, np.ndarray) for one in given)
            operators = _OF_SIZES if sizes else _OPERATORS
            if kind not in operators:
                raise ValueError(
                    f"the ONNX operator {kind} is not known of {'sizes' if sizes else 'data'}; "
                    "export the generator with torch.export.save"
                )
            if not sizes and kind in _ELEMENTWISE:  # a constant among data
                given = [torch.as_tensor(one, device=z.device) for one in given]
            found = operators[kind](*given, **options)
            values[output] = np.asarray(found) if sizes else found
        x: Tensor = values[self.output]
        return x


def _constant(options: dict[str, Any], to_array: Callable[[Any], Array]) -> Array:
    ((name, value),) = options.items()
    if name == "value":
        return to_array(value)
    return np.array(value, np.int64 if "int" in name else np.float32)


def read_onnx(path: Path) -> OnnxNetwork:
    """The generator in an ONNX file.

    Raises:
        ValueError: if `onnx` is not installed, the file is damaged or keeps its weights elsewhere,
            or the graph is not one that is known here.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} is read by onnx; pip install onnx") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of the reader of protobuf
        raise ValueError(f"cannot load {path} ({first_line(error)}); it is damaged") from error
    if any(one.external_data for one in model.graph.initializer):
        raise ValueError(
            f"{path} keeps its weights in another file; save it whole: onnx.save(model, path)"
        )
    return OnnxNetwork(model.graph)


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
          transA: int = 0, transB: int = 0) -> Tensor:  # fmt: skip
    a, b = (a.mT if transA else a), (b if transB else b.mT)
    if alpha == beta == 1 and (c is None or c.dim() == 1):
        return F.linear(a, b, c)
    product = alpha * (a @ b.mT)
    return product if c is None else product + beta * c


def _both(pads: list[int], auto_pad: bytes) -> list[int]:
    """Padding of each dimension, which torch's layers have alike on both sides."""
    half = len(pads) // 2
    if auto_pad not in (b"NOTSET", b"VALID") or pads[:half] != pads[half:]:
        raise ValueError("a convolution is padded unevenly, which torch's layers are not")
    return pads[:half]


def _conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, kernel_shape: Any = None,
          strides: Any = None, pads: Any = None, dilations: Any = None, group: int = 1,
          auto_pad: bytes = b"NOTSET") -> Tensor:  # fmt: skip
    dims = w.dim() - 2
    pads = _both(list(pads or [0] * 2 * dims), auto_pad)
    return torch.convolution(
        x, w, b, strides or [1] * dims, pads, dilations or [1] * dims, False, [0] * dims, group
    )


def _deconv(x: Tensor, w: Tensor, b: Tensor | None = None, *, kernel_shape: Any = None,
            strides: Any = None, pads: Any = None, dilations: Any = None, group: int = 1,
            output_padding: Any = None, auto_pad: bytes = b"NOTSET") -> Tensor:  # fmt: skip
    dims = w.dim() - 2
    pads = _both(list(pads or [0] * 2 * dims), auto_pad)
    return torch.convolution(
        x, w, b, strides or [1] * dims, pads, dilations or [1] * dims, True,
        output_padding or [0] * dims, group,
    )  # fmt: skip


def _batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *,
                epsilon: float = 1e-5, **_: Any) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def _resize(x: Tensor, roi: Any = None, scales: Array | None = None, sizes: Array | None = None,
            *, mode: bytes = b"nearest", coordinate_transformation_mode: bytes = b"half_pixel",
            **_: Any) -> Tensor:  # fmt: skip
    shape = x.shape[2:]
    if sizes is not None and sizes.size:
        size = [int(n) for n in sizes.tolist()[2:]]
    else:
        assert scales is not None
        size = [int(n * s) for n, s in zip(shape, scales.tolist()[2:], strict=True)]
    if mode == b"nearest" and all(new % old == 0 for new, old in zip(size, shape, strict=True)):
        return F.interpolate(x, size)
    if mode == b"linear" and coordinate_transformation_mode != b"asymmetric":
        aligned = coordinate_transformation_mode == b"align_corners"
        return F.interpolate(x, size, mode="bilinear", align_corners=aligned)
    raise ValueError(f"a Resize of mode {mode.decode()} is not known here")


def _pad(x: Tensor, pads: Array, value: Tensor | None = None, axes: Any = None, *,
         mode: bytes = b"constant") -> Tensor:  # fmt: skip
    if axes is not None or mode not in (b"constant", b"reflect"):
        raise ValueError(f"a Pad of mode {mode.decode()} or of some axes is not known here")
    before, after = np.split(pads, 2)
    ends = [int(n) for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
    if mode == b"reflect":
        return F.pad(x, ends[: 2 * (x.dim() - 2)], "reflect")
    return F.pad(x, ends, value=0.0 if value is None else float(value))


def _reshape(x: Tensor, shape: Array, *, allowzero: int = 0) -> Tensor:
    sizes = [int(n) for n in shape.tolist()]
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(sizes)])


def _axes(axes: Any) -> list[int]:
    return [int(n) for n in axes]


def _filled(shape: Array, value: Any = None) -> Array:
    from onnx import numpy_helper

    fill = np.int64(0) if value is None else numpy_helper.to_array(value).flat[0]
    return np.full(_axes(shape), fill)


def _gather(x: Tensor, index: Any, axis: int = 0) -> Tensor:
    if np.ndim(index) == 0:
        return x.select(axis, int(index))
    return x.index_select(axis, torch.as_tensor(index, device=x.device))


def _unsqueeze(x: Tensor, given: Array | None = None, *, axes: Any = None) -> Tensor:
    for axis in sorted(_axes(axes if given is None else given)):
        x = x.unsqueeze(axis)
    return x


def _slice(
    x: Any, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Any:
    every = range(len(starts)) if axes is None else _axes(axes)
    strides = [1] * len(starts) if steps is None else _axes(steps)
    for axis, low, high, step in zip(every, _axes(starts), _axes(ends), strides, strict=True):
        index: list[Any] = [slice(None)] * x.ndim
        index[axis] = slice(low, None if abs(high) >= 2**31 - 1 else high, step)
        x = x[tuple(index)]
    return x


def _mean(x: Tensor, given: Array | None = None, *, axes: Any = None, keepdims: int = 1) -> Tensor:
    return x.mean(_axes(axes if given is None else given), keepdim=bool(keepdims))


def _sum(x: Tensor, given: Array | None = None, *, axes: Any = None, keepdims: int = 1) -> Tensor:
    return x.sum(_axes(axes if given is None else given), keepdim=bool(keepdims))


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), -1) if axis != 1 else x.flatten(1)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x.clamp(low, high)


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow,
    "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log, "Neg": torch.neg, "Abs": torch.abs,
    "Reciprocal": torch.reciprocal, "Round": torch.round, "Erf": torch.erf,
    "MatMul": torch.matmul, "Gemm": _gemm, "Conv": _conv, "ConvTranspose": _deconv,
    "BatchNormalization": _batch_norm, "Resize": _resize, "Reshape": _reshape, "Pad": _pad,
    "Flatten": _flatten, "Unsqueeze": _unsqueeze, "Slice": _slice, "ReduceMean": _mean,
    "ReduceSum": _sum, "Clip": _clip,
    "Relu": torch.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Softplus": F.softplus,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "InstanceNormalization": lambda x, scale, bias, epsilon=1e-5: F.instance_norm(
        x, weight=scale, bias=bias, eps=epsilon
    ),
    "Squeeze": lambda x, given=None, axes=None: x.squeeze(_axes(axes if given is None else given)),
    "Identity": lambda x: x, "Dropout": lambda x, *_, **__: x,
    "Concat": lambda *xs, axis: torch.cat(xs, axis),
    "Expand": lambda x, shape: x.expand(np.broadcast_shapes(x.shape, tuple(_axes(shape)))),
    "Transpose": lambda x, perm: x.permute(*perm), "Gather": _gather, "Cast": lambda x, to: x,
}  # fmt: skip
"""Operators by their names, called with what ONNX gives them: inputs in order, options by name."""

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Pow"}

_OF_SIZES: dict[str, Callable[..., Any]] = {
    "Shape": lambda x, start=0, end=None: np.array(x.shape[start:end], np.int64),
    "Gather": lambda x, index, axis=0: np.take(x, index, axis),
    "Concat": lambda *xs, axis: np.concatenate(xs, axis),
    "Unsqueeze": lambda x, given=None, axes=None: np.expand_dims(
        x, tuple(_axes(axes if given is None else given))
    ),
    "Squeeze": lambda x, given=None, axes=None: np.squeeze(
        x, tuple(_axes(axes if given is None else given))
    ),
    "Slice": _slice, "Transpose": lambda x, perm: x.transpose(perm),
    "Cast": lambda x, to: x, "Identity": lambda x: x,
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.floor_divide,
    "ConstantOfShape": _filled,
    "Equal": np.equal, "Where": np.where, "Mod": np.mod,
    "Reshape": lambda x, shape, allowzero=0: x.reshape(_axes(shape)),
}  # fmt: skip
"""What is computed of sizes alone."""
