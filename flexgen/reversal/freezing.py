"""The state of a generator while it is reversed, and its batch-norm statistics before."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flexgen.modes import restored

Generator = nn.Module | Callable[[Tensor], Tensor]


def batch_norms(generator: Generator) -> list[_BatchNorm]:
    """Those of a module; none of any other callable."""
    modules = generator.modules() if isinstance(generator, nn.Module) else ()
    return [module for module in modules if isinstance(module, _BatchNorm)]


def home(generator: Generator, like: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where and in what precision a generator works: as its weights, or as `like` without any."""
    weights = generator.parameters() if isinstance(generator, nn.Module) else iter(())
    weight = next((weight for weight in weights if weight.is_floating_point()), like)
    return weight.device, weight.dtype


@contextmanager
def frozen(generator: Generator, norm: str) -> Iterator[None]:
    """Hold a generator still: parameters without gradients, eval mode, all restored on leaving.

    Args:
        generator: a module; any other callable is left as it is.
        norm: "eval" for batch norm by its running statistics, "batch" for the statistics of each
            batch, in which case the running ones stay as they are. All else (dropout, spectral
            norm) is in eval mode either way.

    Raises:
        ValueError: for "eval" if a batch norm keeps no running statistics, and for "batch" if the
            generator is no module.
    """
    if not isinstance(generator, nn.Module):
        if norm == "batch":
            raise ValueError(
                "`norm='batch'` needs the generator as a torch.nn.Module, got "
                f"{type(generator).__name__}; pass the module itself"
            )
        yield
        return
    norms = batch_norms(generator)
    if norm == "eval" and any(layer.running_mean is None for layer in norms):
        raise ValueError(
            "`norm='eval'` needs batch norms with running statistics, got one without, which "
            "ties a code to its batch; use norm='batch'"
        )
    with restored(generator):
        generator.eval()
        for parameter in generator.parameters():
            parameter.requires_grad_(False)
        for layer in norms if norm == "batch" else ():
            layer.training, layer.track_running_stats = True, False
        yield


def weights_sha256(generator: Generator) -> str | None:
    """Hash of a module's parameters and buffers; None for any other callable."""
    if not isinstance(generator, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(generator.state_dict().items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def calibrate_batch_norm(
    generator: nn.Module, latents: Tensor, batch_size: int | None = None
) -> None:
    """Set the running statistics of every batch norm to those of given codes.

    An untrained generator's statistics are 0 and 1, whatever its activations are, so that in eval
    mode it is another function than in training. Call this before reversing one. A generator
    without batch norm is left as it is.

    Args:
        generator: changed in place, its running statistics alone; modes are restored.
        latents: codes from the prior, `(n, *latent_shape)`, at least a few hundred.
        batch_size: codes a pass; the statistics are the mean of those of the passes (the last
            incomplete one is left out). All at once by default.

    Raises:
        ValueError: if there are fewer than 2 codes, or fewer than `batch_size`.
    """
    size = len(latents) if batch_size is None else batch_size
    if size < 2 or len(latents) < size:
        raise ValueError(
            f"`latents` must hold at least 2 codes and a whole batch, got {len(latents)} for "
            f"batch_size={batch_size}; draw more from the prior"
        )
    norms = [layer for layer in batch_norms(generator) if layer.running_mean is not None]
    with restored(generator):
        generator.eval()
        for layer in norms:
            layer.reset_running_stats()
            layer.training, layer.momentum = True, None  # None: the mean over all passes
        for chunk in latents.split(size):
            if norms and len(chunk) == size:
                generator(chunk)
