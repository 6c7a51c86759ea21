"""Pivotal tuning of the generator that `flexgen reverse` reversed: `tune=350`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flexgen.analysis.reversal_job import Job
from flexgen.files import write_tensors
from flexgen.metrics import reconstruction_error
from flexgen.reversal import pivotal_tuning
from flexgen.reversal.losses import Loss, loss_of, of_known


def tuned(
    codes: Path, job: Job, values: dict[str, Tensor], asked: dict[str, Any]
) -> tuple[Job, dict[str, Tensor], tuple[str, str]]:
    """The job with a generator tuned to its data, which is saved, and the losses and errors then.

    Weights are those of the generator itself, whatever space its codes were searched in. The last
    of what is returned is a figure by name.
    """
    z, x = load_file(codes)["z"].to(job.device), job.reader.read(job.index).to(job.device)
    loss: Loss = loss_of(job.options.get("loss", "mse"))
    target = x
    if job.mask is not None:
        target, loss = x.masked_fill(~job.mask, torch.nan), partial(of_known, loss=loss)
    context = None if job.context is None else job.context[job.index].to(job.device)
    generator = job.loaded.generator
    assert isinstance(generator, nn.Module)  # checked before the search
    found = pivotal_tuning(
        generator, target, z, context=context, loss=loss, steps=asked["tune"],
        seed=job.options.get("seed", 0), progress=asked["progress"],
    )  # fmt: skip
    inside = next(name for name, part in generator.named_modules() if part is job.original)
    part = found.generator.get_submodule(inside) if inside else found.generator
    weights = part.state_dict()
    # Of their own memory: a file of tensors holds none that share theirs.
    write_tensors(
        codes.parent / "tuned.safetensors", {k: v.clone() for k, v in weights.items()}, {}
    )
    before, after = float(found.before.mean()), float(found.loss.mean())
    lost = "" if after < before else " (no gain: leave out tune=, or give it more steps)"
    told = (
        "pivotal tuning",
        f"{asked['tune']} steps, loss {before:.4g} to {after:.4g}{lost}, its other samples moved "
        f"by {found.drift:.3g} (RMS); {codes.parent / 'tuned.safetensors'}",
    )
    print(": ".join(told))
    errors = reconstruction_error(found.x_hat, x, job.range, job.mask)
    now = {"loss": found.loss, **errors}
    weight = next(found.generator.parameters())
    loaded = replace(job.loaded, generator=found.generator, dtype=weight.dtype)
    return replace(job, loaded=loaded), values | {k: v.cpu() for k, v in now.items()}, told
