"""TorchScript whose code is arithmetic on tensors alone: read before it is loaded."""

import ast
import io
import re
import tokenize
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import torch

_ENTRY = re.compile(
    r"(data\.pkl|constants\.pkl|(\.data/)?version|byteorder|(data|constants)/\d+|code/.+\.py)"
)
"""What a file of `torch.jit.save` is made of; nothing else of it is loaded."""

_MOST_CODE = 2**22
"""Bytes; tensors are not compressed in such a file."""

_LANGUAGE = frozenset("""
annotate Any bool CONSTANTS Dict Final float inf int List Module NamedTuple nan NoneType number
Optional range str Tensor Tuple unchecked_cast uninitialized Union
""".split())  # fmt: skip  # noqa: SIM905
"""Names that are there without an assignment, other than `torch` and `ops`."""

_WRITTEN = (
    ast.AnnAssign, ast.Assign, ast.Attribute, ast.Break, ast.Call, ast.ClassDef, ast.Constant,
    ast.Continue, ast.Dict, ast.Expr, ast.For, ast.FunctionDef, ast.If, ast.List, ast.Load,
    ast.Module, ast.Name, ast.Pass, ast.Return, ast.Slice, ast.Store, ast.Subscript, ast.Tuple,
    ast.UnaryOp, ast.USub, ast.While, ast.arg, ast.arguments, ast.keyword,
)  # fmt: skip
"""What code of `torch.jit.save` is made of."""

_ARITHMETIC = frozenset("""
abs acos adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d add
add_ addcdiv addcmul addmm addmv alpha_dropout amax amin append arange arctan argmax argmin asin
atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bernoulli bmm Bool
BoolImplicit broadcast_to cat ceil celu channel_shuffle chunk clamp clamp_ clamp_max clamp_min
clone concat constant_pad_nd __contains__ contiguous conv1d conv2d conv3d conv_transpose1d
conv_transpose2d conv_transpose3d _convolution copy_ cos cosh cumsum data __derive_index detach
device dim div div_ dropout dropout_ dtype einsum elu elu_ embedding empty empty_like eq erf exp
expand expand_as eye feature_dropout fill_ flatten flip Float FloatImplicit floor floordiv
format full full_like gather ge gelu __getitem__ glu group_norm gt hardshrink hardsigmoid
hardswish hardtanh hardtanh_ index index_select instance_norm Int IntImplicit __is__ is_cuda
is_floating_point __isnot__ item layer_norm le leaky_relu leaky_relu_ len lerp linear linspace
list log log1p log2 log_sigmoid log_softmax logical_and logical_not logical_or logsumexp lt
masked_fill masked_fill_ matmul max max_pool2d maximum mean min minimum mish mm mul mul_ narrow
ne neg new_zeros norm normal __not__ numel NumToTensor ones ones_like pad permute pixel_shuffle
pixel_unshuffle pow prelu prod RaiseException rand rand_like randn randn_like __range_length
reciprocal reflection_pad1d reflection_pad2d relu relu_ relu6 relu6_ remainder repeat
repeat_interleave replication_pad1d replication_pad2d reshape reshape_as roll round rrelu rsqrt
rsub ScalarImplicit select selu selu_ _set_item sigmoid sigmoid_ sign silu silu_ sin sinh size
slice softmax softplus softshrink split split_with_sizes sqrt square squeeze stack std sub sub_
sum t tan tanh tanh_ tensor threshold to transpose tril triu type_as unbind unflatten unsqueeze
unsqueeze_ _unwrap_optional upsample_bicubic2d _upsample_bicubic2d_aa upsample_bilinear2d
_upsample_bilinear2d_aa _upsample_lanczos2d_aa upsample_linear1d upsample_nearest1d
upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d upsample_trilinear3d var var_mean view view_as warn where zeros
zeros_like
""".split())  # fmt: skip  # noqa: SIM905
"""Operations that compute with tensors, and read or write nothing else."""


def arithmetic_alone(path: Path) -> tuple[bytes | None, str]:
    """A TorchScript file that does nothing but compute, as an archive of what was read of it.

    TorchScript is a language of its own, whose operations are called by name. A file is taken if
    its code has no other statements than `torch.jit.save` writes, and each name in it is one of the
    language, one that the code itself defines, or an operation of tensor arithmetic, as functions
    and as methods; so `torch.from_file`, which makes files, and classes of C++ are none. What is
    loaded is a new archive of the very texts that were read, without anything else.

    Returns:
        The archive for `torch.jit.load` and "", or None and why, in a few words; (None, "") of a
        file that is no TorchScript. It may still take as much time and memory as it likes, and
        meet a fault in one of torch's operations.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            kept = {name: info for name, info in infos.items() if _ENTRY.fullmatch(name)}
            if "constants.pkl" not in kept or not any(name.endswith(".py") for name in kept):
                return None, ""
            if len(infos) != len(archive.infolist()):
                return None, "has two entries of one name"
            if sum(info.file_size for info in kept.values()) > path.stat().st_size + _MOST_CODE:
                return None, "unpacks to far more than it is"
            code = {name: archive.read(kept[name]) for name in kept if name.endswith(".py")}
            if why := _beyond_arithmetic(code):
                return None, why
            entries = code | {name: archive.read(kept[name]) for name in kept.keys() - code.keys()}
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return None, ""  # a damaged archive is told when it is loaded
    if any(b"torch.classes" in entries[name] for name in entries if name.endswith(".pkl")):
        return None, "holds objects of C++"
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name in kept:
            archive.writestr(f"archive/{name}", entries[name])
    return written.getvalue(), ""


def _beyond_arithmetic(code: dict[str, bytes]) -> str:
    """What in the texts of an archive is no arithmetic, in a few words; "" if all is."""
    trees = {}
    for name, content in code.items():
        try:
            text = content.decode("ascii")
            strings = tokenize.generate_tokens(io.StringIO(text).readline)
            # So torch's parser sees the same words as Python's.
            if re.search(r"\\(?![n'\"])|#|\"\"\"|'''|[^\n -~]", text) or any(
                t.type == tokenize.STRING and t.string[0] not in "\"'" for t in strings
            ):
                return "has code in other characters than torch.jit.save writes"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                trees[name] = ast.parse(text)
        except (UnicodeError, SyntaxError, tokenize.TokenError, RecursionError):
            return "has code that cannot be read"
    reader = _Reader(trees)
    return next(filter(None, map(reader.read, trees.values())), "")


class _Reader:
    """Goes through texts in their order, and says of the first thing in them what it is that is no
    arithmetic."""

    def __init__(self, trees: dict[str, ast.Module]) -> None:
        self._local: set[str] = set()
        """What the function has assigned so far."""
        self._own: set[str] = set()
        """Classes and functions of the texts, by their whole names."""
        for file, tree in trees.items():
            module = ".".join(PurePosixPath(file).with_suffix("").parts[1:])
            for node in tree.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    self._own.add(f"{module}.{node.name}")

    def read(self, node: ast.AST) -> str:
        if not isinstance(node, _WRITTEN):
            return f"has a statement that torch.jit.save does not write, {type(node).__name__}"
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if node.decorator_list or (node.name.startswith("__") and node.name != "__len__"):
                return f"defines {node.name}"
            before, self._local = self._local, set()
            found = self._all(ast.iter_child_nodes(node))
            self._local = before
            return found
        if isinstance(node, ast.arg):
            return self._all(ast.iter_child_nodes(node)) or self._assigned(node.arg)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.For):  # the value comes first
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            later = node.body if isinstance(node, ast.For) else []
            parts = [n for n in ast.iter_child_nodes(node) if n not in targets and n not in later]
            return self._all([*parts, *targets, *later])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            of, *name = node.args  # only of a module's part whose name is a number
            number = [isinstance(n, ast.Constant) and str(n.value).isdigit() for n in name]
            return self.read(of) or ("" if number == [True] else "calls getattr")
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                return self._assigned(node.id)
            own = ("__annotations__", "__parameters__", "__buffers__")
            known = node.id in self._local or node.id in _LANGUAGE or node.id in own
            return "" if known else f"calls {node.id}"
        return self._all(ast.iter_child_nodes(node))

    def _all(self, nodes: Iterable[ast.AST]) -> str:
        return next(filter(None, map(self.read, nodes)), "")

    def _assigned(self, name: str) -> str:
        self._local.add(name)
        return f"gives {name} another meaning" if name in _LANGUAGE | {"torch", "ops"} else ""

    def _attribute(self, node: ast.Attribute) -> str:
        words, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            words.append(root.attr)
            root = root.value
        names = words[::-1]
        start = root.id if isinstance(root, ast.Name) else ""
        if start == "__torch__":
            own = ".".join([start, *names]) in self._own and not {"classes", "ops"} & {*names}
            return "" if own else f"uses {start}.{'.'.join(names)}"
        if start in ("torch", "ops"):
            last = names[1:] if start == "ops" and names[0] in ("prim", "aten") else names
            known = len(last) == 1 and last[0] in _ARITHMETIC
            return "" if known else f"calls {start}.{'.'.join(names)}"
        # A tensor's methods are all operations, so no part of a module may be called as one.
        for name in names:
            if name in _ARITHMETIC:
                continue
            if (
                name.startswith("__")
                or hasattr(torch.Tensor, name)
                or hasattr(torch.ops.aten, name)
            ):
                return f"calls {name}"
        return self.read(root)
