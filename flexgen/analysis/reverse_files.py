"""Codes of images in files under any generator: load, look through the data, reverse, show."""

import os
import time
from pathlib import Path
from typing import Any

from flexgen.analysis.foreign_generator import shape_text
from flexgen.analysis.pairs import read_values, show_pairs, sum_up
from flexgen.analysis.reversal_job import Job, prepare, work
from flexgen.analysis.tuning import tuned
from flexgen.analysis.workers import shards
from flexgen.checks import check_integer
from flexgen.data.sources import printable
from flexgen.files import remove_empty
from flexgen.reversal.chunks import clear


def find_codes(asked: dict[str, Any]) -> None:
    """Do what was asked, alone, with processes of one's own, or as a rank of torchrun.

    A ValueError tells of a mistake in what was asked, before the work where that can be; a
    RuntimeError that a process of one's own failed.
    """
    rank, world_size = _ranks(asked)
    job = prepare(asked, rank)
    if rank:
        work(asked, job, rank, world_size)
        return
    _describe(asked, job)
    if asked["restart"]:
        clear(Path(asked["out"]))
    started = time.perf_counter()
    try:
        with shards(asked, asked["processes"]) as check:
            done = work(asked, job, 0, max(world_size, asked["processes"]), check)
    except Exception:
        remove_empty(Path(asked["out"]).absolute(), above=Path.cwd())
        raise
    values = read_values(done.codes)
    facts = sum_up(done, values, time.perf_counter() - started, job, asked["own"])
    if asked["tune"]:
        job, values, told = tuned(done.codes, job, values, asked)
        facts.append(told)
    print(f"codes: {done.codes}")
    if asked["pairs"]:
        show_pairs(done.codes, values, job, facts, asked)


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


def _ranks(asked: dict[str, Any]) -> tuple[int, int]:
    """This process and how many there are, as torchrun says."""
    rank, world_size = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    if check_integer("processes", asked["processes"], 1) > 1 and world_size > 1:
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
