"""TorchScript whose code is arithmetic on tensors alone: read before it is loaded."""

import ast
import io
import re
import tokenize
import warnings
import zipfile
from pathlib import Path

_ENTRY = re.compile(
    r"(data\.pkl|constants\.pkl|version|byteorder|(data|constants)/\d+|code/.+\.py)"
)
"""What a file of `torch.jit.save` is made of; nothing else of it is loaded."""

_LANGUAGE = frozenset("""
annotate Any bool CONSTANTS Dict Final float getattr inf int List Module NamedTuple nan NoneType
number Optional range str Tensor __torch__ Tuple unchecked_cast uninitialized Union
""".split())  # fmt: skip  # noqa: SIM905
"""Names that are there without an assignment, other than `torch` and `ops`."""

_NEVER = {"awaitable", "fork", "ops", "rpc_async", "rpc_remote", "rpc_sync", "torch"}

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
    each name in its code is one of the language, one that the code itself defined before, or an
    operation of tensor arithmetic; so `torch.from_file`, which makes files, and classes of C++ are
    none. What is loaded is a new archive of the very texts that were read, without anything else.

    Returns:
        The archive for `torch.jit.load` and "", or None and why, in a few words; (None, "") of a
        file that is no TorchScript. It may still take as much time and memory as it likes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            entries = {name.partition("/")[2]: archive.read(name) for name in names}
    except Exception:  # a damaged archive is told when it is loaded
        return None, ""
    kept = {name: content for name, content in entries.items() if _ENTRY.fullmatch(name)}
    if "constants.pkl" not in kept or not any(name.endswith(".py") for name in kept):
        return None, ""
    if len(entries) != len(names):
        return None, "has two entries of one name"
    if any(
        b"torch.classes" in kept[name] for name in ("data.pkl", "constants.pkl") if name in kept
    ):
        return None, "holds objects of C++"
    for name, content in kept.items():
        if name.endswith(".py") and (found := _unknown(content)):
            return None, found
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in kept.items():
            archive.writestr(f"archive/{name}", content)
    return written.getvalue(), ""


def _unknown(content: bytes) -> str:
    """What in a text is no arithmetic, in a few words; "" if all is."""
    try:
        text = content.decode("ascii")
        if re.search(r"[\\#]|\"\"\"|'''|[^\n -~]", text):  # else both parsers see the same words
            return "has code in other characters than torch.jit.save writes"
        strings = tokenize.generate_tokens(io.StringIO(text).readline)
        if any(t.type == tokenize.STRING and t.string[0] not in "\"'" for t in strings):
            return "has code in other characters than torch.jit.save writes"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text)
    except (UnicodeError, SyntaxError, tokenize.TokenError, RecursionError):
        return "has code that cannot be read"
    return _Reader().read(tree)


class _Reader:
    """Goes through a text in its order, and keeps the names that each function has defined."""

    def __init__(self) -> None:
        self.defined: set[str] = set()

    def read(self, node: ast.AST) -> str:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            before, self.defined = self.defined, set()
            found = self._children(node)
            self.defined = before
            return found
        if isinstance(node, ast.Lambda | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal):
            return f"has a statement that torch.jit.save does not write, in line {node.lineno}"
        if isinstance(node, ast.arg):
            self.defined.add(node.arg)
            return self._children(node) or self._kept(node.arg)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.For):  # the value comes first
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            later = node.body if isinstance(node, ast.For) else []
            rest = [n for n in ast.iter_child_nodes(node) if n not in targets and n not in later]
            return next(filter(None, map(self.read, [*rest, *targets, *later])), "")
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                self.defined.add(node.id)
                return self._kept(node.id)
            known = node.id in self.defined | _LANGUAGE or node.id.startswith("__annotations__")
            known = known or node.id in ("__parameters__", "__buffers__", "__constants__")
            return "" if known else f"calls {node.id}"
        return self._children(node)

    def _children(self, node: ast.AST) -> str:
        return next(filter(None, map(self.read, ast.iter_child_nodes(node))), "")

    def _kept(self, name: str) -> str:
        return f"gives {name} another meaning" if name in _LANGUAGE | _NEVER else ""

    def _attribute(self, node: ast.Attribute) -> str:
        words, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            words.append(root.attr)
            root = root.value
        path = words[::-1]
        if not isinstance(root, ast.Name) or root.id not in ("torch", "ops", "__torch__"):
            return self.read(root)
        if root.id == "__torch__":
            return f"uses __torch__.{'.'.join(path)}" if {"classes", "ops"} & {*path} else ""
        known = path[1:] if root.id == "ops" and path[0] in ("prim", "aten") else path
        if len(known) == 1 and known[0] in _ARITHMETIC:
            return ""
        return f"calls {root.id}.{'.'.join(path)}"
