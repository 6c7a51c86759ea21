"""A trained run as files for others: programs that need torch alone, weights, a folder to share."""

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen.checks import check_one_of, first_line
from flexgen.contracts import in_context
from flexgen.distributions import BoxUniform
from flexgen.drawing import draw_samples
from flexgen.files import write_atomically, write_tensors, write_text
from flexgen.models import Latent
from flexgen.models.autoencoder import Mean
from flexgen.runs.model_card import model_card
from flexgen.runs.run import Run

FORMATS = ("torchscript", "export", "safetensors", "hub_folder")
PARTS = ("generator", "encoder", "prior")

_ENDINGS = {"torchscript": ".pt", "export": ".pt2", "safetensors": ".safetensors"}
_TOLERANCE = 1e-4


class _Program(nn.Module):
    """A network of one input, and its labels where it is conditional."""

    latent_dim: int

    def __init__(self, network: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.network, self.latent_dim = network, latent_dim

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out


class _LabelledProgram(_Program):
    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.network(x, context)
        return out


class _Encoder(nn.Module):
    """Data to the mean of q(z|x)."""

    def __init__(self, posterior: nn.Module) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        mean: Tensor = in_context(self.posterior, x, context).mean
        return mean


class _PriorMap(nn.Module):
    """Noise to codes: f of a prior f#p(ε)."""

    def __init__(self, prior: nn.Module, to_code: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prior, self.to_code = prior, to_code

    def forward(self, eps: Tensor) -> Tensor:
        return self.to_code(eps)


@dataclass(frozen=True)
class Part:
    """A part of a model as a program.

    Args:
        name: generator, encoder or prior.
        network: the module.
        inputs: two examples of what it takes, the first the codes, data or noise.
        weights: what holds its parameters.
    """

    name: str
    network: nn.Module
    inputs: tuple[Tensor, ...]
    weights: nn.Module


def export(run: Run, to: str, out: Path, parts: list[str], seed: int = 0) -> list[str]:
    """Write a run's generator, encoder and prior for others to use, and what to know of them.

    The same run gives the same bytes, written by a process of its own; `seed` is of the picture.

    Args:
        run: with the weights of its checkpoint.
        to: "torchscript" or "export", programs that run with torch alone; "safetensors", weights of
            FlexGen's networks; or "hub_folder", all that a model hub wants.
        out: the folder to write into.
        parts: of "generator", "encoder" and "prior"; those that the model lacks are told.
        seed: of the samples in the picture.

    Returns:
        A line for each thing to say: what was written, what the model lacks, and why.

    Raises:
        ValueError: if `to` or a part is none, the model has no generator, or a part can be no such
            program.
    """
    check_one_of("to", to, FORMATS, "set to=torchscript, say")
    for name in parts:
        check_one_of("parts", name, PARTS, "set parts=[generator,prior], say")
    model = run.latent.to("cpu")
    if model.decoder is None:
        raise ValueError(
            f"a {type(model).__name__} with such a likelihood has draws and no differentiable "
            "generator to export; `flexgen sample to=npz` writes its samples"
        )
    told: list[str] = []
    found: dict[str, Part] = {}
    with model.evaluating(), torch.no_grad(), _unchecked():
        for name in parts:
            try:
                found[name] = _part(model, name, tuple(run.data.shape))
            except _LacksError as lacking:
                told.append(f"no {name}: {lacking}")
        kinds = ("torchscript", "safetensors") if to == "hub_folder" else (to,)
        files = {
            name: [_write(part, kind, out, run.config) for kind in kinds]
            for name, part in found.items()
        }
    about = _about(run, model, seed)
    if to == "hub_folder":
        write_text(out / "config.json", json.dumps(about, indent=2, sort_keys=True) + "\n")
    if to == "hub_folder" and len(run.data.shape) == 3 and run.data.range is not None:
        picture = run.sample(36, seed)
        draw_samples(picture, run.data.range, out / "samples.png")
    write_text(out / "README.md", model_card(about, files, picture=to == "hub_folder"))
    return [*told, *(f"{name}: {path}" for name, paths in files.items() for path in paths)]


class _LacksError(Exception):
    """A model has no such part."""


@contextmanager
def _unchecked() -> Any:
    """Distributions do not look at their values, which a program that is written down cannot."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _part(model: Latent, name: str, shape: tuple[int, ...]) -> Part:
    prior = model.prior.current
    context = model.in_turn(3)
    labels = () if context is None else (context,)
    if name == "generator":
        assert model.decoder is not None
        return Part(name, model.decoder, (torch.zeros(3, model.latent_dim), *labels), model.decoder)
    if name == "encoder":
        if "encoder" not in model.capabilities or "codebook" in model.capabilities:
            raise _LacksError("the model learned none; `flexgen reverse` finds codes")
        posterior = model.get_submodule("posterior")
        x = torch.zeros(3, *shape)
        try:
            in_context(posterior, x, context).mean  # noqa: B018
        except (NotImplementedError, AttributeError):
            raise _LacksError("its q(z|x) has draws and no mean") from None
        return Part(name, _Encoder(posterior), (x, *labels), posterior)
    base = prior.base_space()
    if base.prior is prior:
        drawn = _drawn_by(prior)
        raise _LacksError(
            "it is no map of noise; `flexgen sample` draws from it"
            if drawn is None
            else f"a code is simply {drawn}"
        )
    eps = torch.zeros(3, base.prior.latent_dim)
    return Part(name, _PriorMap(prior, base.to_code), (eps,), prior)


def _drawn_by(prior: Any) -> str | None:
    """How codes, or the noise of a prior that is a map, are drawn in torch's words."""
    if prior.normal_scale is not None:
        scale = "" if prior.normal_scale == 1 else f"{prior.normal_scale:g} * "
        return f"{scale}torch.randn(n, {prior.latent_dim})"
    drawn = prior()
    if isinstance(drawn, BoxUniform) and prior.support is not None:
        low, high = prior.support
        return f"{low:g} + {high - low:g} * torch.rand(n, {prior.latent_dim})"
    return None


def _about(run: Run, model: Latent, seed: int) -> dict[str, Any]:
    base = model.prior.current.base_space()
    config, network = run.config, run.config["model"].get("generator")
    if network is None:
        mean = f"{Mean.__module__}.{Mean.__qualname__}"
        network = {"_target_": mean, "likelihood": config["model"]["likelihood"]}
    return {
        "name": config["name"],
        "model": config["model"]["_target_"],
        "network": network,
        "prior": type(model.prior.current).__name__,
        "draw": _drawn_by(base.prior),
        "prior_is_map": base.prior is not model.prior.current,
        "latent_dim": model.latent_dim,
        "num_classes": model.num_classes,
        "classes": list(run.data.class_names or []) if model.num_classes else [],
        "data": run.data.name,
        "shape": list(run.data.shape),
        "range": run.data.range and list(run.data.range),
        "steps": model.counters.generator_steps,
        "seed": config["seed"],
        "sample_seed": seed,
    }


def _write(part: Part, kind: str, out: Path, config: dict[str, Any]) -> Path:
    path = out / f"{part.name}{_ENDINGS[kind]}"
    if kind == "safetensors":
        write_tensors(path, part.weights.state_dict())
        return path
    latent_dim = part.inputs[0].shape[1] if part.name != "encoder" else 0
    kinds = _LabelledProgram if len(part.inputs) > 1 else _Program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own, on what it deprecates and unrolls
            content = (_scripted if kind == "torchscript" else _exported)(part, kinds, latent_dim)
    except Exception as error:  # whatever of a network a program cannot hold
        raise ValueError(
            f"the {part.name} cannot be written as {kind} ({first_line(error)}); leave it out by "
            "parts=[…], or use to=safetensors"
        ) from error
    write_atomically(path, lambda beside: beside.write_bytes(content))
    return path


def _scripted(part: Part, kind: type[_Program], latent_dim: int) -> bytes:
    traced: Any = torch.jit.trace(part.network, part.inputs, check_trace=False)
    program: Any = torch.jit.script(kind(traced, latent_dim))
    _check_same(part, program)
    content = io.BytesIO()
    torch.jit.save(program, content)
    return content.getvalue()


def _exported(part: Part, kind: type[_Program], latent_dim: int) -> bytes:
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in part.inputs)
    module = kind(part.network, latent_dim)
    program = torch.export.export(module, part.inputs, dynamic_shapes=shapes)
    _check_same(part, program.module())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.pt2"
        torch.export.save(program, path)
        return path.read_bytes()


def _check_same(part: Part, program: Callable[..., Tensor]) -> None:
    """On other inputs, of another number, a program gives what the network gives."""
    first, *labels = part.inputs
    x = torch.linspace(-1, 1, 5 * first[0].numel()).view(5, *first.shape[1:])
    others = [torch.arange(5) % (int(y.max()) + 1) for y in labels]
    expected, found = part.network(x, *others), program(x, *others)
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=_TOLERANCE, atol=_TOLERANCE
    ):
        raise ValueError("what it gives depends on the batch, or is another than the network's")
