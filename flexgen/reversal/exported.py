"""Archives of `torch.export.save`, loaded without unpickling, as a function of any batch size."""

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import first_line

# What sympy writes of a size; torch hands these texts to sympy, which evaluates what it is given.
_WORDS = {
    "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "FloorDiv",
    "CeilDiv", "CleanDiv", "PythonMod", "TrueDiv", "IntTrueDiv", "Eq", "Ne", "Lt", "Le", "Gt",
    "Ge", "positive", "integer", "nonnegative", "negative", "real", "zero", "True", "False", "oo",
    "int_oo",
}  # fmt: skip
_SIZE = re.compile(r"[\w\s'(),=+*/<>-]*")
# torch looks a target up from `torch` or `operator` on, wherever that leads.
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|torch\.sym_\w+|math\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
)


def load_exported(
    path: Path, names: Sequence[str], *, trust: bool, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...], torch.dtype, tuple[str, ...]]:
    """The program of an archive.

    An archive may hold pickles, compiled code and texts that torch evaluates; without `trust` it is
    refused if it holds any that could do more than make tensors.

    Args:
        path: the archive.
        names: the names of its files.
        trust: whether to load it whatever it holds.
        device: where to put it.

    Returns:
        A function from codes to data; the shape of one code and the type of the example input that
        the program was exported with; and what a person should know, a line each.

    Raises:
        ValueError: if the archive is damaged, needs trust, or its program does not map one tensor.
    """
    from torch.export.passes import move_to_device_pass

    if not trust:
        _check(path, names)
    try:
        with _tensors_only(not trust), open(path, "rb") as file:
            # A file, not a path: torch then does not mind what it is called.
            program: Any = torch.export.load(file)
        inputs: Any = program.example_inputs or ((), {})
        args, kwargs = inputs
        if device.type != "cpu":
            program = move_to_device_pass(program, device)
        # The guards of its inputs are texts of Python, which torch would execute.
        module = program.module(check_guards=trust)
    except Exception as error:
        raise ValueError(
            f"cannot load {path} ({first_line(error)}); it is damaged, or of a torch.export "
            "that this torch cannot read: export it again"
        ) from error
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].dim() < 2:
        raise ValueError(
            f"the program in {path} must take one tensor of codes, (n, *latent_shape), got "
            f"{len(args) + len(kwargs)} inputs; export a module that takes codes alone"
        )
    module.requires_grad_(False)
    codes = next(
        node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    )
    batch = codes.meta["val"].shape[0]
    shape, dtype = tuple(args[0].shape[1:]), args[0].dtype
    if not isinstance(batch, int):
        return _call(module), shape, dtype, ()
    note = (
        f"the program was exported for batches of exactly {batch}: it runs in such pieces; for "
        "any batch export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"
    )
    return _in_pieces(module, batch), shape, dtype, (note,)


def _call(module: Any) -> Callable[[Tensor], Tensor]:
    # A plain function: an exported module knows no eval mode, and would refuse to be put there.
    def generate(z: Tensor) -> Tensor:
        x: Tensor = module(z)
        return x

    return generate


def _in_pieces(module: Any, size: int) -> Callable[[Tensor], Tensor]:
    def generate(z: Tensor) -> Tensor:
        padded = torch.cat([z, z[:1].expand(-len(z) % size, *z.shape[1:])])
        return torch.cat([module(piece) for piece in padded.split(size)])[: len(z)]

    return generate


def _check(path: Path, names: Sequence[str]) -> None:
    """Refuse what loading would unpickle into more than tensors, run, or evaluate."""
    if any("/aotinductor/" in name for name in names):
        raise ValueError(_needs_trust(path, "compiled code"))
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():  # not by name, which several may share
            name = entry.filename.lower()
            if re.search(r"/(opaque_obj|custom_obj)_\d+$", name):
                raise ValueError(_needs_trust(path, "pickled objects"))
            if not name.endswith(".json"):
                continue
            try:
                content = json.loads(archive.read(entry))
            except (ValueError, zipfile.BadZipFile) as error:
                raise ValueError(
                    f"cannot load {path} ({name}: {error}); it is damaged: copy it again"
                ) from error
            for key, text in _texts(content):
                if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", text):
                    raise ValueError(_needs_trust(path, "pickled objects"))
                if key == "expr_str" and not _is_size(text):
                    raise ValueError(_needs_trust(path, f"the expression {text[:40]!r}"))
                if key in ("target", "as_operator") and not _TARGET.fullmatch(text):
                    raise ValueError(_needs_trust(path, f"a call of {text[:40]!r}"))


def _is_size(text: str) -> bool:
    words = re.findall(r"[^\W\d]\w*", text)
    known = all(word in _WORDS or re.fullmatch(r"[a-z]+\d+", word) for word in words)
    return known and _SIZE.fullmatch(text) is not None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str):
        yield key, value


def _needs_trust(path: Path, what: str) -> str:
    return (
        f"{path} holds {what}: to load it would run whatever code its writer put there; if you "
        "trust it, say trust=true"
    )


@contextmanager
def _tensors_only(on: bool) -> Iterator[None]:
    """Have every `torch.load` within refuse more than tensors, whatever it is called with."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    try:
        if on:
            os.environ[name] = "1"
        yield
    finally:
        if on:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
