"""What a process of a reversal needs, and what it does: its own chunks."""

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.analysis.foreign_generator import Found, open_generator, pair
from flexgen.analysis.reversal_inputs import read_mask, with_features
from flexgen.checks import check_integer
from flexgen.data.readers import ArrayFile, ImageFolder, Reader
from flexgen.files import file_sha256
from flexgen.metrics import reconstruction_error
from flexgen.priors import Normal
from flexgen.reversal import PosteriorCodes, Reversal, Structured, posterior_codes, reverse
from flexgen.reversal.freezing import Generator, frozen
from flexgen.reversal.losses import in_range
from flexgen.reversal.stream import Streamed, reverse_stream

_CODES = ("latent_shape", "space", "mapping", "synthesis", "layers", "slope", "noise")
_MOST_TUNED = 256


@dataclass(frozen=True)
class Job(Found):
    """All that a process needs to do its chunks: beside the generator, data and device."""

    reader: Reader
    index: Tensor
    mask: Tensor | None
    loss: Any
    device: torch.device
    identity: dict[str, Any]
    drawing: dict[str, Any] | None

    @property
    def way(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """What finds codes, and its options."""
        return (self.find, self.options) if self.drawing is None else (self.draw, self.drawing)

    def find(self, generator: Generator, x: Tensor, **options: Any) -> "Measured":
        """:func:`~flexgen.reversal.reverse`, and the errors of what it finds."""
        found = reverse(generator, x, mask=self.mask, **options)
        errors = reconstruction_error(found.x_hat, x.to(found.x_hat), self.range, self.mask)
        return Measured(**{**vars(found), **errors})

    def draw(
        self, generator: Generator, x: Tensor, *, latent_shape: tuple[int, ...], **options: Any
    ) -> "Drawn":
        """:func:`~flexgen.reversal.posterior_codes`, and the errors of what its codes make."""
        size = math.prod(latent_shape)
        flat = generator if len(latent_shape) == 1 else Structured(generator, latent_shape)
        drawn = posterior_codes(flat, x, prior=self.prior or Normal(size), **options)
        given = () if options.get("context") is None else (options["context"].to(x.device),)
        z = drawn.z.unflatten(1, latent_shape)
        with torch.no_grad(), frozen(generator, "eval"):
            x_hat = generator(z.to(self.loaded.dtype), *given).float()
        errors = reconstruction_error(x_hat, x.to(x_hat), self.range)
        states = drawn.states.unflatten(3, latent_shape)
        shaped = {"z": z, "states": states, "log_p": drawn.log_prob}
        return Drawn(**{**vars(drawn), **shaped, **errors})


@dataclass(frozen=True)
class Measured(Reversal):
    """A reversal with the errors of each sample, see `flexgen.metrics.reconstruction_error`."""

    rmse: Tensor | None = None
    psnr: Tensor | None = None
    ssim: Tensor | None = None


@dataclass(frozen=True)
class Drawn(PosteriorCodes):
    """Posterior draws with log p(x) and the errors of each sample, as :class:`Measured` has."""

    log_p: Tensor | None = None
    rmse: Tensor | None = None
    psnr: Tensor | None = None
    ssim: Tensor | None = None


def prepare(asked: dict[str, Any], rank: int) -> Job:
    """Load the generator, try it, and find the data; ValueError if something does not fit,
    FileNotFoundError if it is not there."""
    options, drawing = _options(asked["reverse"]), _drawing(asked)
    device = _device(asked["device"], rank)
    processes = asked["processes"]
    for name in ("pairs", "own", "n", "chunk", "threads", "tune"):
        if asked[name] is not None:
            check_integer(name, asked[name], int(name not in ("pairs", "own")))
    threads = asked["threads"] or ((os.cpu_count() or 1) // processes if processes > 1 else None)
    if threads is not None:
        torch.set_num_threads(max(1, threads))
    typed = options.get("loss", "mse")
    found = open_generator(asked, options, device, rank)
    found.options["loss"] = with_features(in_range(typed, found.range), asked, device)
    data_range = pair("data_range", asked["data_range"])
    shape, value_range = found.probe.shape, found.range
    reader = _reader(asked, shape, value_range, data_range, found.data_range)
    size = len(reader)
    n = min(asked["n"] or size, size)
    if found.context is not None and len(found.context) != size:
        raise ValueError(
            f"`labels` must hold one for each of {size} samples, got {len(found.context)}"
        )
    if asked["tune"] is not None:
        _check_tunable(found, n)
    mask = read_mask(asked["mask"], shape)
    identity = {
        "generator": found.loaded.sha256, "data": asked["data"], "data_key": asked["data_key"],
        "shape": list(shape), "range": list(value_range),
        "data_range": [x and list(x) for x in (data_range, found.data_range)], "loss": typed,
        "codes": {name: asked[name] for name in _CODES},
        "mask": asked["mask"] and file_sha256(Path(asked["mask"])),
    }  # fmt: skip
    index = torch.arange(n) * size // n
    return Job(
        **vars(found), reader=reader, index=index, mask=None if mask is None else mask.to(device),
        loss=typed, device=device, identity=identity, drawing=drawing,
    )  # fmt: skip


def work(
    asked: dict[str, Any], job: Job, rank: int, world_size: int,
    check: Callable[[], None] | None = None,
) -> Streamed:  # fmt: skip
    """Do the chunks of one process."""
    chunk = asked["chunk"] or (256 if job.device.type == "cpu" else 2048)
    find, options = job.way
    return reverse_stream(
        job.loaded.generator, job.reader, asked["out"], latent_shape=job.latent_shape,
        find=find, identity=job.identity, index=job.index, context=job.context, chunk=chunk,
        device=job.device, rank=rank, world_size=world_size, check=check,
        progress=asked["progress"], **options,
    )  # fmt: skip


def _check_tunable(found: Found, n: int) -> None:
    if found.options.get("norm") == "batch":
        raise ValueError("`tune` is of a generator in eval mode; leave out reverse.norm=batch")
    if n > _MOST_TUNED:
        raise ValueError(
            f"`tune` fits one generator to all data, at most {_MOST_TUNED} samples, got {n}; give "
            "n=16, say"
        )
    generator = found.original
    if not isinstance(generator, nn.Module) or not any(True for _ in generator.parameters()):
        raise ValueError(
            f"`tune` fits the parameters of a module, got a {found.loaded.kind} without any; give "
            "the module as a pickle, as TorchScript that is not frozen, or package.module:attribute"
        )


def _reader(
    asked: dict[str, Any], shape: tuple[int, ...], value_range: tuple[float, float],
    data_range: tuple[float, float] | None, usual: tuple[float, float] | None,
) -> Reader:  # fmt: skip
    if asked["data"] == "folder":
        return ImageFolder(
            asked["path"], shape, value_range, resize=asked["resize"], unusable=asked["unusable"]
        )
    if asked["data"] == "array":
        return ArrayFile(
            asked["path"], shape, value_range, key=asked["data_key"], resize=asked["resize"],
            data_range=data_range, usual=usual,
        )  # fmt: skip
    raise ValueError(
        f"`data` must be folder or array, got {asked['data']!r}; data=folder reads all images "
        "below path, data=array one .npy, .npz, .pt or .safetensors file"
    )


def _options(asked: dict[str, Any]) -> dict[str, Any]:
    theirs = {
        "generator",
        "x",
        "latent_shape",
        "context",
        "mask",
        "index",
        "history",
        "progress",
        "watch",
    }
    known = set(inspect.signature(reverse).parameters) - theirs
    options = {name: value for name, value in asked.items() if value is not None}
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"unknown key `reverse.{unknown[0]}`; there are {', '.join(sorted(known & set(asked)))}"
        )
    for name in {"bounds", "moments"} & options.keys():
        options[name] = pair(f"reverse.{name}", options[name], rising=name == "bounds")
    return options


def _drawing(asked: dict[str, Any]) -> dict[str, Any] | None:
    """Options of posterior draws, if they are asked for; ValueError for what does not go along."""
    typed = {name: value for name, value in asked["posterior"].items() if value is not None}
    if not typed:
        return None
    if "sigma" not in typed:
        raise ValueError(
            "posterior draws need the standard deviation of the noise on the data; give "
            "posterior.sigma=0.1"
        )
    shared = ("batch_size", "seed", "precision")
    given = {name: value for name, value in asked["reverse"].items() if value is not None}
    others = [f"reverse.{name}" for name in given if name not in shared]
    others += [name for name in ("mask", "tune", "encoder") if asked[name] is not None]
    if others:
        raise ValueError(
            f"posterior draws (posterior.sigma) do not go with {others[0]}; of reverse.* they take "
            f"{', '.join(shared)} alone"
        )
    return typed | given


def _device(name: str, rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`device` must be auto, cpu or cuda, got {name!r}") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("`device` is cuda, but torch sees no GPU; set device=cpu")
        if device.index is None:
            local = int(os.environ.get("LOCAL_RANK", rank))
            device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device
