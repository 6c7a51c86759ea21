"""Any generator, from wherever it lies, a file or a Python attribute; and what it makes."""

import hashlib
import io
import sys
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from flexgen.checks import first_line
from flexgen.files import file_sha256
from flexgen.reversal.checks import returned
from flexgen.reversal.diffusers_files import read_decoder
from flexgen.reversal.exported import read_exported
from flexgen.reversal.freezing import Generator, batch_norms, frozen, home, weights_sha256
from flexgen.reversal.onnx_files import read_onnx
from flexgen.reversal.pickles import Styled, is_pickle, pick, read_pickle
from flexgen.reversal.preparation import is_noisy, tried
from flexgen.reversal.script_code import arithmetic_alone
from flexgen.reversal.starts import normal_codes

_WEIGHTS = (
    "Weights need no trust: safetensors.torch.save_file(generator.state_dict(), 'g.safetensors'), "
    "then generator=g.safetensors network={_target_: package.Class, latent_dim: 100}"
)


@dataclass(frozen=True)
class Loaded:
    """A generator, and what is known about it without running it.

    Attributes:
        generator: codes to data; a module wherever it is one.
        latent_shape: shape of one code, where the generator says it itself; else None.
        kind: "TorchScript file", "torch.export archive", "module" and so on, for messages.
        sha256: of the file, or of a module's source file and weights.
        dtype: floating type that it computes in.
        notes: what a person should know, a line each.
        any_size: whether it takes codes of other heights and widths than `latent_shape`.
    """

    generator: Generator
    latent_shape: tuple[int, ...] | None
    kind: str
    sha256: str
    dtype: torch.dtype = torch.float32
    notes: tuple[str, ...] = ()
    any_size: bool = False


def load_generator(
    source: str | Path, *, network: nn.Module | None = None, key: str | None = None,
    trust: bool = False, device: torch.device | str = "cpu",
) -> Loaded:  # fmt: skip
    """The generator in a file, in a folder of diffusers', or at an import path.

    Weights, a .safetensors file, are loaded into `network`. TorchScript (`torch.jit.save`) whose
    code calls nothing but tensor arithmetic computes, and does nothing else; the decoder in a
    folder of diffusers' is weights for a class of its own. Everything else is a
    program, or may hold one, and does what its writer wants, so it needs `trust`: other
    TorchScript, an archive of `torch.export.save`, an ONNX file, a pickle, by `torch.save` or by
    itself, each known by its content, and a module that is imported. A pickle may hold a
    module, weights for `network`, or a dictionary of such, NVIDIA's with `G` and `G_ema` say.

    Args:
        source: a file, or `package.module:attribute` of a module or a function from codes to data,
            found on `sys.path`.
        network: what the weights belong to.
        key: where the generator lies in a file of several things, `G_ema` or
            `state_dict.generator`; None: under a usual name, an average first.
        trust: whether a program may run.
        device: where to put it. A function stays where it is.

    Returns:
        The generator in eval mode, its parameters without gradients.

    Raises:
        FileNotFoundError: if there is no such file, module or attribute.
        ValueError: if it is a program and there is no `trust`; weights without `network`, or of
            another; no generator, several, or damaged.
    """
    path, device = Path(source), torch.device(device)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("model_index.json", "config.json")):
            raise ValueError(
                f"{source} is a folder; name a generator's file in it, a FlexGen run's folder, "
                "which holds config.yaml, or that of an autoencoder of diffusers, with config.json"
            )
        if network is not None or key is not None:
            raise ValueError(f"`network` and `key` go with a file, got the folder {source}")
        decoder, sha256 = read_decoder(path)
        return replace(_of_module(decoder, "decoder of diffusers", sha256, device), any_size=True)
    name, _, attribute = str(source).partition(":")
    imported = all(part.isidentifier() for part in (*name.split("."), *attribute.split(".")))
    if not path.is_file() and not imported:
        raise FileNotFoundError(
            f"there is no file {source}; give the path of weights or of a program, the folder of a "
            "FlexGen run, or package.module:attribute"
        )
    if path.is_file() and path.suffix == ".safetensors":
        return _weights(path, network, key, device)
    if path.is_file() and (other := _other_kind(path)) is not None:
        raise ValueError(f"{path} is {other}")
    archive, why = None, ""
    if not trust:
        archive, why = arithmetic_alone(path) if path.is_file() else (None, "")
        if archive is None:
            pickled = path.is_file() and is_pickle(path)
            what = "a pickle, which may be a program" if pickled else "a program, not weights"
            raise ValueError(
                f"{source} is {what}{why and f', that {why}'}: it can do on this machine "
                f"whatever you can; if you trust who made it, say trust=true. {_WEIGHTS}"
            )
    if path.is_file():
        return _from_file(path, network, key, device, archive)
    if network is not None or key is not None:
        raise ValueError(f"`network` and `key` go with a file, got {source}")
    return _from_import(name, attribute, device)


@dataclass(frozen=True)
class Probe:
    """What a generator makes of a few codes.

    Attributes:
        shape: shape of one sample.
        low, high: least and greatest value of a few samples.
        notes: what a person should know, a line each.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    notes: tuple[str, ...]


@torch.no_grad()
def probe(loaded: Loaded, latent_shape: Sequence[int], device: torch.device | str = "cpu") -> Probe:
    """Run a few codes through a generator: mistakes show now, not after reading the data.

    Raises:
        ValueError: if it does not take codes of that shape, or what it makes is no batch of finite
            numbers.
    """
    shape = tuple(latent_shape)
    z = normal_codes(torch.arange(16), shape, 0).to(device, loaded.dtype)
    # A module without running statistics is refused later, by `reverse`.
    steady = all(layer.running_mean is not None for layer in batch_norms(loaded.generator))

    def generate(z: Tensor) -> Tensor:
        x: Tensor = loaded.generator(z.clone())  # it may write there
        return x

    with frozen(loaded.generator, "eval") if steady else nullcontext():
        try:
            x = generate(z)
        except Exception as error:  # whatever a stranger's code may raise
            hint = _shape_hint(loaded, shape)
            if isinstance(error, TypeError) and "required positional argument" in str(error):
                hint = "give classes by labels=…, or name a function of codes alone"
            raise ValueError(
                f"the generator does not take codes of shape {shape}: {_last_line(error)}; {hint}"
            ) from error
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
            raise ValueError(
                "the generator must return one floating-point tensor (n, *shape), got "
                f"{returned(x)}"
            )
        if len(x) != len(z):
            raise ValueError(
                f"the generator must return one sample for each code, got {len(x)} for {len(z)}; "
                f"{_shape_hint(loaded, shape)}"
            )
        if not x.isfinite().all():
            raise ValueError(
                "the generator must make finite values, got NaN or infinity for standard normal "
                "codes; check its weights"
            )
        noisy, turned = is_noisy(generate, z, x), generate(z.flip(0)[:8]).flip(0)
        if steady:
            tried(generate, z)
    notes = []
    scale = float(x.max() - x.min()) or 1.0
    if noisy:
        notes.append(
            "the generator gives another image each time for one code (dropout, or noise of its "
            "own): codes are found only up to that noise, and none is called converged; make it "
            "deterministic"
        )
    elif float((turned - x[-8:]).abs().max()) > max(1e-3, 10 * torch.finfo(x.dtype).eps) * scale:
        notes.append(
            "what the generator makes of a code depends on the codes beside it (batch norm in "
            "train mode): so do the codes found; save it in eval mode, generator.eval()"
        )
    if torch.finfo(loaded.dtype).bits < 32:
        notes.append(
            f"the generator computes in {str(loaded.dtype).removeprefix('torch.')}: codes are "
            "searched in float32, and what is shown is of its own pass"
        )
    return Probe(tuple(x.shape[1:]), float(x.min()), float(x.max()), tuple(notes))


def missing_latent_shape(loaded: Loaded) -> str:
    """What to tell a person who has not said what codes look like."""
    hint = _first_weight(loaded.generator)
    if loaded.any_size:
        return (
            f"codes of which size does the generator take? this {loaded.kind} does not say{hint}; "
            "give latent_shape=[channels,height,width], as in latent_shape=[4,32,32]"
        )
    return (
        f"which codes does the generator take? this {loaded.kind} does not say{hint}; give "
        "latent_dim=100 for vectors of that size, or latent_shape=[512,4,4]"
    )


def _weights(
    path: Path, network: nn.Module | None, key: str | None, device: torch.device
) -> Loaded:
    if network is None:
        raise ValueError(
            f"{path} holds weights alone; name what they belong to: network={{_target_: "
            "package.Class, latent_dim: 100}"
        )
    try:
        content = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"cannot load {path} ({first_line(error)}); it is damaged") from error
    state, _ = pick(content, key, path, weights=True)
    assert isinstance(state, dict)
    _fill(network, state, path)
    return _of_module(network, "weights", _keyed(file_sha256(path), key), device)


def _fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the weights in {path} are not those of a {type(network).__name__} ({first}); give "
            "the class and the arguments that they were trained with, or key= where the file "
            "holds several networks"
        ) from error


def _from_file(
    path: Path, network: nn.Module | None, key: str | None, device: torch.device,
    archive: bytes | None,
) -> Loaded:  # fmt: skip
    sha256 = file_sha256(path)
    alone = "a generator by itself; leave out `network` and `key`"
    if archive is not None:  # what was read is what is loaded: the file is not looked at again
        if network is not None or key is not None:
            raise ValueError(f"{path} is a TorchScript file, {alone}")
        return _of_module(_script(path, archive, device), "TorchScript file", sha256, device)
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    inside = {name.partition("/")[2] for name in names}
    exported = "archive_format" in inside or "serialized_exported_program.json" in names
    whole = "a torch.export archive" if exported else "a TorchScript file"
    if (exported or "constants.pkl" in inside) and (network is not None or key is not None):
        raise ValueError(f"{path} is {whole}, {alone}")
    if exported:
        program, shape, notes = read_exported(path, device)
        return Loaded(program, shape, "torch.export archive", sha256, program.dtype, notes)
    if "constants.pkl" in inside:
        return _of_module(_script(path, None, device), "TorchScript file", sha256, device)
    if path.suffix == ".onnx":
        if network is not None or key is not None:
            raise ValueError(f"{path} is {alone}")
        return _of_module(read_onnx(path), "ONNX file", sha256, device)
    content = read_pickle(path)
    found, note = pick(content, key, path, weights=network is not None)
    notes = () if note is None else (note,)
    if isinstance(found, nn.Module):
        return _of_module(found, "pickled module", _keyed(sha256, key), device, notes)
    assert network is not None
    _fill(network, found, path)
    return _of_module(network, "weights", _keyed(sha256, key), device, notes)


def _script(path: Path, archive: bytes | None, device: torch.device) -> nn.Module:
    source = path if archive is None else io.BytesIO(archive)
    try:
        with warnings.catch_warnings():
            # Deprecated for writing; there are many files of it, and they are to be read.
            warnings.filterwarnings("ignore", ".*torch.jit.* is deprecated", FutureWarning)
            script: nn.Module = torch.jit.load(source, map_location=device)
    except Exception as error:
        raise ValueError(f"cannot load {path} ({_last_line(error)}); it is damaged") from error
    return script


def _other_kind(path: Path) -> str | None:
    """What else a file is, and what to do about it."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file, of Keras perhaps: save the generator as ONNX, generator=g.onnx"
    if start.startswith(b"\x93NUMPY"):
        return "an array, not a generator; it may be what you give as path="
    return None


def _keyed(sha256: str, key: str | None) -> str:
    return sha256 if key is None else hashlib.sha256(f"{sha256} {key}".encode()).hexdigest()


def _from_import(name: str, attribute: str, device: torch.device) -> Loaded:
    try:
        module = found = import_module(name)
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"cannot import {name} ({error}); it must be installed, or lie in this folder"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise FileNotFoundError(
                f"{name} has no attribute {attribute}; name a module or a function that it defines"
            )
        found = getattr(found, part)
    if isinstance(found, type) or not callable(found):
        raise ValueError(
            f"{name}:{attribute} must be a torch.nn.Module or a function from codes to data, got "
            f"{'the class' if isinstance(found, type) else type(found).__name__} "
            f"{getattr(found, '__name__', '')}".rstrip()
            + "; name an object made from it, or for weights in a file say generator=FILE "
            f"network={{_target_: {name}.{attribute}, …}}"
        )
    digest = hashlib.sha256()
    if (file := getattr(sys.modules[module.__name__], "__file__", None)) is not None:
        digest.update(Path(file).read_bytes())
    if not isinstance(found, nn.Module):
        return Loaded(found, _said_shape(found), "function", digest.hexdigest())
    digest.update((weights_sha256(found) or "").encode())
    return _of_module(found, "module", digest.hexdigest(), device)


def _of_module(
    module: nn.Module, kind: str, sha256: str, device: torch.device, notes: tuple[str, ...] = ()
) -> Loaded:
    if _is_styled(module):
        module = Styled(module)
        notes = (*notes, "its noise is held at the maps that are saved in it")
    was_training = module.training and any(
        isinstance(layer, _BatchNorm | _DropoutNd) for layer in module.modules()
    )
    module.to(device).eval()
    for parameter in module.parameters():  # a ScriptModule has no requires_grad_ of its own
        parameter.requires_grad_(False)
    _, dtype = home(module, torch.empty(0, dtype=torch.float32))
    if was_training:
        notes = (*notes, "it was saved in train mode, and is run in eval mode")
    return Loaded(module, _said_shape(module), kind, sha256, dtype, notes)


def _is_styled(module: nn.Module) -> bool:
    sizes = all(isinstance(getattr(module, name, None), int) for name in ("z_dim", "c_dim"))
    parts = {name for name, _ in module.named_children()}
    return sizes and {"mapping", "synthesis"} <= parts


def _said_shape(generator: object) -> tuple[int, ...] | None:
    """The shape of a code, where an attribute says it outright."""
    shape = getattr(generator, "latent_shape", None)
    if isinstance(shape, list | tuple) and shape and all(isinstance(n, int) for n in shape):
        return tuple(shape)
    dim = getattr(generator, "latent_dim", getattr(generator, "z_dim", None))
    return (dim,) if isinstance(dim, int) and not isinstance(dim, bool) else None


def _first_weight(generator: Generator) -> str:
    weights = generator.parameters() if isinstance(generator, nn.Module) else iter(())
    first = next((tuple(weight.shape) for weight in weights if weight.dim() > 1), None)
    return "" if first is None else f" (its first weight has the shape {first})"


def _shape_hint(loaded: Loaded, shape: tuple[int, ...]) -> str:
    hint = _first_weight(loaded.generator)
    if len(shape) == 1:
        hint += f", or latent_shape=[{shape[0]},1,1] if it begins with a convolution"
    return f"set latent_dim or latent_shape{hint}"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TorchScript puts its traceback first and what went wrong last; others the other way round.
    line = next((line for line in reversed(lines) if line.startswith("RuntimeError")), None)
    return (line or (lines[0] if lines else type(error).__name__))[:200]
