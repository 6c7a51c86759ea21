"""`reverse_stream`: codes of a set of any size, on disk, whatever happens on the way."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flexgen._version import __version__
from flexgen.checks import check_integer
from flexgen.reversal.annealed import PosteriorCodes
from flexgen.reversal.chunks import Parts
from flexgen.reversal.engine import Reversal, reverse
from flexgen.reversal.freezing import Generator, weights_sha256
from flexgen.reversal.progress import ChunkProgress


class Source(Protocol):
    """A data set that is read a part at a time; see `flexgen.data.readers`."""

    names: list[str] | None

    def __len__(self) -> int: ...

    def read(self, index: Tensor) -> Tensor:
        """Examples, float `(n, *shape)`."""

    def stamp(self, index: Tensor) -> str:
        """Digest that changes when these examples do."""


class TensorSource:
    """A tensor `(n, *shape)` as a source."""

    names: list[str] | None = None

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def read(self, index: Tensor) -> Tensor:
        return self.x[index.to(self.x.device)]

    def stamp(self, index: Tensor) -> str:
        """Digest of the rows themselves."""
        rows = self.x[index.to(self.x.device)].detach().cpu().contiguous().view(torch.uint8)
        return hashlib.sha256(rows.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Streamed:
    """What became of a stream.

    Attributes:
        codes: the file of codes; not there yet if other processes still work, or are to gather.
        samples: number of samples in it.
        before: how many of them were done before this call.
    """

    codes: Path
    samples: int
    before: int


def reverse_stream(
    generator: Generator,
    source: Source,
    out: str | Path,
    *,
    find: Callable[..., Reversal | PosteriorCodes] = reverse,
    identity: Mapping[str, Any] | None = None,
    index: Tensor | None = None,
    context: Tensor | None = None,
    chunk: int = 256,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    check: Callable[[], None] | None = None,
    restart: bool = False,
    progress: bool = False,
    **options: Any,
) -> Streamed:
    """Codes of a whole data set, written to `out/codes.safetensors`.

    The set is gone through in chunks: one is read, reversed by `find` and written before the
    next is looked at, so memory holds one chunk. A chunk that is written is never done again: after
    a kill, however abrupt, the same call goes on where the last one stopped. Codes do not depend on
    the chunks or on who does them (starts follow from each sample's own index), so the file's
    tensors are those of one undisturbed run, bit for bit where `reverse` is exact (see there).

    Of `world_size` processes each takes every `world_size`-th chunk, and process 0 joins the
    parts once all are there. They share nothing but the folder.

    Args:
        generator, **options: as for `find`.
        find: :func:`~flexgen.reversal.reverse` or :func:`~flexgen.reversal.posterior_codes`.
        source: the data.
        out: folder for the codes; its parts lie in `codes.parts` below until all are done.
        identity: what says which generator and data these are, plain values. A folder that holds
            work of another identity is refused. A hash of the weights, if None and the generator is
            a module; its options and the data's names are always part of it.
        index: which examples, `(n,)`, rising; all if None.
        context: what the generator is called with beside the codes, of each example of the data.
        chunk: samples at a time, best a multiple of `batch_size`.
        device: where a chunk's data are put, for a generator that is no module.
        rank, world_size: number of this process, and of all.
        check: called after each chunk and while process 0 waits for the others; it raises if there
            is no use in going on, one of them having failed.
        restart: throw away what the folder holds of an earlier reversal.
        progress: whether to show progress over all processes on standard error.

    Returns:
        Where the file of codes is. It holds what `find` returns of each sample but `x_hat`, and
        its `index`. Its metadata hold `identity` and, where the source has
        them, `names`, as JSON, and `how`, in words.

    Raises:
        ValueError: if the folder holds other work, another process is writing there, the data have
            changed since, or for whatever `reverse` refuses.
        OSError: if the folder cannot be written.
    """
    check_integer("chunk", chunk)
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be in [0, {world_size}), got {rank}")
    if restart and world_size > 1:
        raise ValueError(
            "`restart` is for one process: several would remove each other's parts; remove "
            f"{out} by hand, then start all"
        )
    out = Path(out)
    index = torch.arange(len(source)) if index is None else index
    chunks = index.split(chunk)
    if options.get("norm") == "batch" and len(chunks[-1]) < 2:
        raise ValueError(
            "`chunk` must not leave one sample alone in the last chunk with norm='batch', got "
            f"{len(chunks[0])} for {len(index)} samples; choose another"
        )
    if identity is None:
        identity = {"generator": weights_sha256(generator)}
    identity = {
        **identity,
        "by": find.__name__,
        "options": {name: _plain(value) for name, value in sorted(options.items())},
        "chunk": chunk,
        "samples": len(index),
        "index": _digest(index.tolist()),
        "context": _plain(context),
        "names": None if source.names is None else _digest(source.names),
        "flexgen": __version__,
        "torch": torch.__version__,
        "device": torch.device(device).type,
    }
    parts = Parts(out, identity, [len(part) for part in chunks])
    with parts.alone(rank), ChunkProgress(parts, progress and rank == 0, check) as watch:
        if parts.open(restart):
            return Streamed(parts.codes, len(index), len(index))
        watch.look()
        for number in range(rank, len(chunks), world_size):
            stamp = source.stamp(chunks[number])
            if (done := parts.finished().get(number)) is not None:
                if done["stamp"] != stamp:
                    raise ValueError(
                        f"the data of samples {int(chunks[number][0])} to "
                        f"{int(chunks[number][-1])} have changed since they were reversed; give "
                        "another folder with out=, or start anew with restart=true"
                    )
                continue
            started = time.perf_counter()
            x = source.read(chunks[number]).to(device)
            given = {} if context is None else {"context": context[chunks[number]]}
            found = find(generator, x, index=chunks[number], **given, **options)
            tensors = {k: v.cpu() for k, v in found.tensors().items() if k != "x_hat"}
            tensors["index"] = chunks[number]
            about = {
                "stamp": stamp,
                "how": found.how,
                "loss": repr(float(found.loss.double().sum())),
                "seconds": f"{time.perf_counter() - started:.3f}",
            }
            parts.write(number, tensors, about)
            watch.look()
        if rank == 0:
            watch.wait()
            names = [] if source.names is None else [source.names[i] for i in index.tolist()]
            about = {"names": json.dumps(names, ensure_ascii=False)} if names else {}
            parts.gather({**about, "how": parts.finished()[0]["how"]})
        return Streamed(parts.codes, len(index), watch.before or 0)


def _digest(values: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return hashlib.sha256(raw.numpy().tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        return weights_sha256(value)
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
