"""Where the processes of a run meet: what each found, and what process zero has."""

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor


def rank() -> int:
    """Which process of a run this is: the others train, and leave files to process zero."""
    return getattr(rank_zero_only, "rank", 0)


def gather_from_all(mine: Any) -> list[Any]:
    """What every process calls this with, in order of rank; all must call it.

    Outside of a run of several processes that is `mine` alone.

    Args:
        mine: anything that can be pickled; tensors arrive on the device they were sent from.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


@torch.no_grad()
def copy_from_zero(tensors: list[Tensor]) -> None:
    """Overwrite vectors of one type by those of process zero, in one message."""
    flat = torch.cat(tensors)
    dist.broadcast(flat, 0)
    torch._foreach_copy_(tensors, flat.split([len(t) for t in tensors]))
