"""One reversal, its batches shared by all processes of a run."""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flexgen.reversal import Reversal, reverse
from flexgen.training import everyones

__all__ = ["reverse_together"]

_BATCH_SIZE = inspect.signature(reverse).parameters["batch_size"].default
_FIELDS = ("z", "x_hat", "loss", "steps", "converged")


def reverse_together(generator: nn.Module, x: Tensor, **options: Any) -> Reversal:
    """:func:`flexgen.reversal.reverse`, called by every process alike, done once by all of them.

    Batch b is reversed by process b mod W, and every process gets all codes. The batches are those
    that one process would make, so the codes are its codes to the bit, whatever the generator's
    kernels make of a sample's companions. Where the samples of a batch are tied to each other
    (`norm="batch"`, `constraint="moments"`), each process does the whole.

    Args:
        generator: codes to data, the same in every process.
        x: data, `(n, *shape)`, the same in every process.
        **options: of `reverse`, the same in every process; process zero alone shows progress, and
            a history is not gathered.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    options["progress"] = options.get("progress", False) and rank == 0
    tied = options.get("norm") == "batch" or options.get("constraint") == "moments"
    if tied or world_size == 1:
        return reverse(generator, x, **options)
    index = options.pop("index", None)
    index = torch.arange(len(x)) if index is None else index
    batches = torch.arange(len(x)).split(options.get("batch_size", _BATCH_SIZE))
    mine, how = {}, ""
    if rank < len(batches):
        rows = torch.cat(batches[rank::world_size])
        found = reverse(generator, x[rows], index=index[rows], **options)
        mine, how = {name: getattr(found, name).cpu() for name in _FIELDS}, found.how
    parts = [part for part in everyones(mine) if part]
    order = torch.cat(
        [rows for r in range(world_size) for rows in batches[r::world_size]]
    ).argsort()
    fields = {
        name: torch.cat([part[name] for part in parts])[order].to(x.device) for name in _FIELDS
    }
    return Reversal(**fields, how=how)
