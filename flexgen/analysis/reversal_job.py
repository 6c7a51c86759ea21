"""What `flexgen reverse generator=…` does: load, look through the data, reverse, sum up, show."""

import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen.analysis.foreign_generator import open_generator, pair, shape_text
from flexgen.data.image_stores import printable
from flexgen.data.readers import ArrayFile, ImageFolder, Reader
from flexgen.reversal import reverse
from flexgen.reversal.chunks import clear
from flexgen.reversal.loading import Loaded, Probe
from flexgen.reversal.stream import Streamed, reverse_stream
from flexgen.runs.errors import check_whole

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
    from flexgen.analysis.pairs import show_pairs, sum_up
    from flexgen.analysis.workers import Shards

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
            check_whole(name, asked[name], least)
    threads = asked["threads"] or ((os.cpu_count() or 1) // processes if processes > 1 else None)
    if threads is not None:
        torch.set_num_threads(max(1, threads))
    found = open_generator(asked, options, device, rank)
    loaded, (low, high), options = found.loaded, found.range, found.options
    tried = found.probe
    data_range = pair("data_range", asked["data_range"]) or found.data_range
    reader = _reader(asked, tried.shape, (low, high), data_range)
    size = len(reader)
    n = min(asked["n"] or size, size)
    identity = {
        "generator": loaded.sha256,
        "data": asked["data"],
        "key": asked["key"],
        "shape": list(tried.shape),
        "range": [low, high],
        "data_range": data_range and list(data_range),
    }
    return Job(
        loaded, found.latent_shape, tried, (low, high), reader, torch.arange(n) * size // n, device,
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


def _describe(asked: dict[str, Any], job: Job) -> None:
    """Say what was found, and what a person should know of it before waiting."""
    loaded, tried = job.loaded, job.probe
    print(
        f"generator: {asked['generator']} ({loaded.kind}), codes {shape_text(job.latent_shape)} to "
        f"{shape_text(tried.shape)}"
    )
    some = f"{len(job.index)} of " if len(job.index) < len(job.reader) else ""
    print(f"data: {printable(asked['path'])} ({some}{len(job.reader)} samples)")
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


def _reader(
    asked: dict[str, Any],
    shape: tuple[int, ...],
    value_range: tuple[float, float],
    data_range: tuple[float, float] | None,
) -> Reader:
    if asked["data"] == "folder":
        return ImageFolder(asked["path"], shape, value_range, resize=asked["resize"])
    if asked["data"] == "array":
        return ArrayFile(
            asked["path"], shape, value_range, key=asked["key"], resize=asked["resize"],
            data_range=data_range,
        )  # fmt: skip
    raise ValueError(
        f"`data` must be folder or array, got {asked['data']!r}; data=folder reads all images "
        "below path, data=array one .npy, .npz or .safetensors file"
    )


def _options(asked: dict[str, Any]) -> dict[str, Any]:
    theirs = {"generator", "x", "latent_shape", "index", "history", "progress", "watch"}
    known = set(inspect.signature(reverse).parameters) - theirs
    options = {name: value for name, value in asked.items() if value is not None}
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"unknown key `reverse.{unknown[0]}`; there are {', '.join(sorted(known & set(asked)))}"
        )
    for name in {"bounds", "moments"} & options.keys():
        options[name] = pair(f"reverse.{name}", options[name], rising=name == "bounds")
    return options


def _ranks(asked: dict[str, Any]) -> tuple[int, int]:
    """This process and how many there are, as torchrun says."""
    rank, world_size = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    if check_whole("processes", asked["processes"], 1) > 1 and world_size > 1:
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
