"""What `flexgen reverse generator=…` does: load, look through the data, reverse, sum up, show."""

import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.data.readers import ArrayFile, ImageFolder, Reader
from flexgen.reversal import reverse
from flexgen.reversal.loading import Loaded, Probe, load_generator, missing_latent_shape, probe
from flexgen.reversal.modes import Generator
from flexgen.reversal.parts import clear
from flexgen.reversal.stream import Streamed, reverse_stream

__all__ = ["Job", "find_codes", "prepare", "work"]


@dataclass(frozen=True)
class Job:
    """All that a process needs to do its chunks."""

    loaded: Loaded
    latent_shape: tuple[int, ...]
    probe: Probe
    range: tuple[float, float]
    reader: Reader
    index: Tensor
    device: torch.device
    options: dict[str, Any]
    identity: dict[str, Any]


def find_codes(asked: dict[str, Any]) -> None:
    """Do what was asked, alone, with processes of one's own, or as a rank of torchrun.

    Raises:
        ValueError: for a mistake in what was asked; everything that can be told before the work is.
        RuntimeError: if a process of one's own failed.
    """
    rank, world_size = _ranks(asked)
    job = prepare(asked, rank)
    if rank:
        work(asked, job, rank, world_size)
        return
    from flexgen.cli.pairs import show_pairs, sum_up
    from flexgen.cli.shards import Shards

    _describe(asked, job)
    if asked["restart"]:
        clear(Path(asked["out"]))
    started = time.perf_counter()
    with Shards(asked, asked["processes"]) as shards:
        done = work(asked, job, 0, max(world_size, asked["processes"]), shards.check)
    facts = sum_up(done, time.perf_counter() - started, job)
    print(f"codes: {done.codes}")
    if asked["pairs"]:
        show_pairs(done.codes, job, facts, asked)


def prepare(asked: dict[str, Any], rank: int) -> Job:
    """Load the generator, try it, and find the data.

    Raises:
        ValueError: if something does not fit.
        FileNotFoundError: if something is not there.
    """
    options = _options(asked["reverse"])
    device = _device(asked["device"], rank)
    processes = asked["processes"]
    for name, least in (("pairs", 0), ("n", 1), ("chunk", 1), ("threads", 1)):
        if asked[name] is not None:
            _at_least(name, asked[name], least)
    threads = asked["threads"] or ((os.cpu_count() or 1) // processes if processes > 1 else None)
    if threads is not None:
        torch.set_num_threads(max(1, threads))
    loaded, its_range, its_options = _load(asked, device)
    options = its_options | options
    if options.get("norm") == "batch" and loaded.kind.startswith("TorchScript"):
        raise ValueError(
            "norm=batch reaches the batch norms of a torch.nn.Module, got a TorchScript file; "
            "give the module itself with generator=package.module:attribute"
        )
    latent_shape = _latent_shape(asked, loaded)
    tried = probe(loaded, latent_shape, device)
    low, high = _pair("range", asked["range"]) or its_range or (-1.0, 1.0)
    if options.get("loss") == "bce" and (low, high) != (0.0, 1.0):
        # The cross-entropy wants [0, 1]: both sides are moved there.
        loaded = replace(loaded, generator=_Unit(loaded.generator, low, high))
        tried = replace(tried, low=(tried.low - low) / (high - low),
                        high=(tried.high - low) / (high - low))  # fmt: skip
        low, high = 0.0, 1.0
    reader = _reader(asked, tried.shape, (low, high))
    size = len(reader)
    n = min(asked["n"] or size, size)
    identity = {
        "generator": loaded.sha256,
        "data": asked["data"],
        "key": asked["key"],
        "shape": list(tried.shape),
        "range": [low, high],
        "data_range": asked["data_range"],
    }
    return Job(
        loaded, latent_shape, tried, (low, high), reader, torch.arange(n) * size // n, device,
        options, identity,
    )  # fmt: skip


def work(
    asked: dict[str, Any],
    job: Job,
    rank: int,
    world_size: int,
    check: Callable[[], None] | None = None,
) -> Streamed:
    """Do the chunks of one process."""
    return reverse_stream(
        job.loaded.generator,
        job.reader,
        asked["out"],
        latent_shape=job.latent_shape,
        identity=job.identity,
        index=job.index,
        chunk=asked["chunk"] or (256 if job.device.type == "cpu" else 2048),
        device=job.device,
        rank=rank,
        world_size=world_size,
        check=check,
        progress=asked["progress"],
        **job.options,
    )


class _Unit(nn.Module):
    """A generator whose range [low, high] is moved to [0, 1]."""

    def __init__(self, generator: Generator, low: float, high: float) -> None:
        super().__init__()
        self.generator, self.low, self.high = generator, low, high

    def forward(self, z: Tensor) -> Tensor:
        return (self.generator(z) - self.low) / (self.high - self.low)


def _describe(asked: dict[str, Any], job: Job) -> None:
    """Say what was found, and what a person should know of it before waiting."""
    loaded, tried = job.loaded, job.probe
    print(
        f"generator: {asked['generator']} ({loaded.kind}), codes {_shape(job.latent_shape)} to "
        f"{_shape(tried.shape)}"
    )
    some = f"{len(job.index)} of " if len(job.index) < len(job.reader) else ""
    print(f"data: {asked['path']} ({some}{len(job.reader)} samples)")
    notes = [*loaded.notes, *tried.notes, *job.reader.check()]
    low, high = job.range
    span = high - low
    if len(tried.shape) == 3 and (tried.low < low - 0.1 * span or tried.high > high + 0.1 * span):
        notes.append(
            f"what the generator makes lies in [{tried.low:.2g}, {tried.high:.2g}] for a few codes,"
            f" not in range=[{low:g},{high:g}]; give its range"
        )
    elif len(tried.shape) == 3 and low < 0 <= tried.low and tried.high > 0:
        notes.append(
            f"the generator makes nothing below 0 for a few codes, though range=[{low:g},{high:g}];"
            f" if black is 0, say range=[0,{high:g}]"
        )
    for note in notes:
        print(f"note: {note}")


def _load(
    asked: dict[str, Any], device: torch.device
) -> tuple[Loaded, tuple[float, float] | None, dict[str, Any]]:
    """The generator, its range, and the options that it comes with; the last two of a run alone."""
    folder = Path(asked["generator"])
    if not (folder / "config.yaml").is_file():
        return load_generator(folder if folder.exists() else asked["generator"],
                              trust=asked["trust"], device=device), None, {}  # fmt: skip
    from flexgen.callbacks.reversal import base_space
    from flexgen.cli.build import load_trained
    from flexgen.cli.compose import load_config
    from flexgen.training import file_sha256

    parts = load_trained(load_config(folder.resolve()), folder.resolve())
    model = parts.model.to(device).eval()
    model.requires_grad_(False)
    generator, prior = base_space(model)
    assert parts.checkpoint is not None
    loaded = Loaded(
        generator, tuple(prior().event_shape), "FlexGen run", file_sha256(parts.checkpoint)
    )
    support = getattr(prior, "support", None)
    bounded = {} if support is None else {"constraint": "clip", "bounds": tuple(support)}
    return loaded, parts.data.range, bounded


def _latent_shape(asked: dict[str, Any], loaded: Loaded) -> tuple[int, ...]:
    dim, shape = asked["latent_dim"], asked["latent_shape"]
    if dim is not None and shape is not None:
        raise ValueError(f"give latent_dim or latent_shape, not both, got {dim} and {shape}")
    given = [dim] if dim is not None else shape
    if given is None:
        if loaded.latent_shape is None:
            raise ValueError(missing_latent_shape(loaded))
        return loaded.latent_shape
    if not isinstance(given, list) or not all(type(size) is int and size > 0 for size in given):
        raise ValueError(
            f"latent_dim must be a whole number above 0, latent_shape a list of them, got {given}; "
            "as in latent_dim=100 or latent_shape=[512,4,4]"
        )
    if loaded.latent_shape not in (None, tuple(given)):
        raise ValueError(
            f"the {loaded.kind} takes codes of shape {_shape(loaded.latent_shape or ())}, got "
            f"{_shape(tuple(given))}; leave out {'latent_shape' if dim is None else 'latent_dim'}"
        )
    return tuple(given)


def _reader(
    asked: dict[str, Any], shape: tuple[int, ...], value_range: tuple[float, float]
) -> Reader:
    if asked["data"] == "folder":
        return ImageFolder(asked["path"], shape, value_range, resize=asked["resize"])
    if asked["data"] == "array":
        return ArrayFile(
            asked["path"], shape, value_range, key=asked["key"], resize=asked["resize"],
            data_range=_pair("data_range", asked["data_range"]),
        )  # fmt: skip
    raise ValueError(
        f"`data` must be folder or array, got {asked['data']!r}; data=folder reads all images "
        "below path, data=array one .npy, .npz or .safetensors file"
    )


def _options(asked: dict[str, Any]) -> dict[str, Any]:
    known = set(inspect.signature(reverse).parameters) - {"generator", "x", "latent_shape", "index"}
    options = {name: value for name, value in asked.items() if value is not None}
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"unknown key `reverse.{unknown[0]}`; there are {', '.join(sorted(known & set(asked)))}"
        )
    for name in {"bounds", "moments"} & options.keys():
        options[name] = _pair(f"reverse.{name}", options[name], rising=name == "bounds")
    return options


def _ranks(asked: dict[str, Any]) -> tuple[int, int]:
    """This process and how many there are, as torchrun says."""
    rank, world_size = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    if _at_least("processes", asked["processes"], 1) > 1 and world_size > 1:
        raise ValueError(
            f"`processes` must be 1 under torchrun, whose {world_size} processes share the work, "
            f"got {asked['processes']}"
        )
    if world_size > 1 and asked["restart"]:
        raise ValueError(
            "`restart` must be false under torchrun: its processes would remove each other's "
            f"parts; remove {asked['out']} by hand, then start them"
        )
    return rank, world_size


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


def _at_least(name: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}")
    return value


def _pair(name: str, value: Any, rising: bool = True) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)
    if not numbers or len(value) != 2 or (rising and not value[0] < value[1]):
        raise ValueError(f"`{name}` must be [low,high] with low < high, got {value}; as in [-1,1]")
    return float(value[0]), float(value[1])


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape) or "()"
