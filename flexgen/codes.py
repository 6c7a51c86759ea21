"""Codes of data under a model: of its posterior, or by reversal, over all processes of a run."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from flexgen.contracts import Draws, Prior
from flexgen.files import open_file
from flexgen.models import Latent
from flexgen.reversal import Mapped, PosteriorCodes, Reversal, posterior_codes, reverse
from flexgen.reversal.losses import Moved, ToUnit, in_range, in_unit_range
from flexgen.training import Loop, gather_from_all, isolated_rng

Found = TypeVar("Found", Reversal, PosteriorCodes)

_BANK = 1  # tells the bank's draws from others by the same seed


def codes_path(run_dir: Path, step: int) -> Path:
    return run_dir / "codes" / f"step={step:08d}.safetensors"


def load_codes(path: Path) -> dict[str, Tensor]:
    """The tensors of a codes file: `z`, `loss`, `label` where there are classes, and more.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no codes at {path}; run `flexgen reverse run=…` first")
    try:
        with open_file(path) as file:
            return load(file.read())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and reverse again") from error


class Codes(NamedTuple):
    """Codes `(n, latent_dim)` of data, and of each what the model was conditioned on; what there is
    to say of them as draws of p(z|x), None: nothing."""

    z: Tensor
    context: Tensor | None
    draws: Draws | None = None


def context_of(model: Loop, label: Tensor | None) -> Tensor | None:
    """The labels of data as a model takes them: none, if it is not conditional."""
    return None if model.num_classes is None or label is None else label.to(model.device)


def base_space(model: Latent) -> tuple[nn.Module, Prior]:
    """The map from the prior's base space to data, and the prior there.

    With a prior that is a map f, a pushforward or a flow, it is G∘f, else G on Z itself.

    Raises:
        ValueError: if the model has no differentiable map from codes to data.
    """
    decoder, prior = _decoder(model), model.prior.current
    base = prior.base_space().prior
    return (decoder, prior) if base is prior else (Mapped(prior, decoder), base)


def _decoder(model: Latent) -> nn.Module:
    if (decoder := model.decoder) is None:
        raise ValueError(
            f"a {type(model).__name__} without a differentiable picture of its codes cannot be "
            "reversed; its codes are its encoder's: set `callbacks.refit.source=posterior`, and "
            "leave `reversal` out of `callbacks`"
        )
    return decoder


def prior_options(prior: Prior, options: dict[str, Any]) -> dict[str, Any]:
    """Options for :func:`flexgen.reversal.reverse` under a prior.

    With `constraint="auto"`, the default, codes are clipped to the prior's support if it has one.
    The codes of a bank are draws from the prior.
    """
    support = prior.support
    options = {"constraint": "auto", **options, "latent_shape": (prior.latent_dim,)}
    if options["constraint"] == "auto":
        options["constraint"] = None if support is None else "clip"
    if options["constraint"] == "clip" and options.get("bounds") is None and support is not None:
        options["bounds"] = tuple(support)
    size = options.get("bank", 2048)
    searches = options.get("method", "auto") in ("auto", "lbfgs") or options.get("init") == "bank"
    if searches and isinstance(size, int):
        # Not the seed itself: whoever draws codes by it, to generate images and reverse them, would
        # find these very codes in the bank.
        own = np.random.SeedSequence([options.get("seed", 0), _BANK]).generate_state(1)
        with isolated_rng(int(own[0])):
            options["bank"] = prior.draw(size)
    return options


def encoder_codes(
    model: Latent, x: Tensor, context: Tensor | None, *, seed: int, base: bool = False
) -> Tensor:
    """Codes of data `(n, latent_dim)` by a model's own encoder, drawn by a seed.

    Args:
        model: whose encoder.
        x: data, on the model's device.
        context: of each.
        seed: of the draws from q(z|x).
        base: whether they are wanted in the base space of the prior in use.

    Raises:
        ValueError: if there is no encoder, or the prior's map has no inverse.
    """
    with isolated_rng(seed):
        z = model.encode(x, context)
    if z is None:
        raise ValueError(
            f"codes of an encoder are asked for, and a {type(model).__name__} has none; train "
            "model=ali or bigan, or take codes by reversal, from `init=bank` say"
        )
    if not base:
        return z
    prior = model.prior.current
    if (from_code := prior.base_space().from_code) is None:
        raise ValueError(
            f"an encoder's codes are not in the base space of a {type(prior).__name__} prior, "
            "whose map has no inverse; set `callbacks.reversal.space=code`, or another `init`"
        )
    with torch.no_grad():
        return from_code(z)


def with_start(
    model: Latent, x: Tensor, context: Tensor | None, options: dict[str, Any], *, base: bool
) -> dict[str, Any]:
    """Options for :func:`reverse_data` in which `init="encoder"` is the codes of the model's own.

    The arguments are those of :func:`encoder_codes`, `seed` being the options'.
    """
    if options.get("init") != "encoder":
        return options
    seed = options.get("seed", 0)
    return {**options, "init": encoder_codes(model, x, context, seed=seed, base=base)}


def reverse_data(
    generator: nn.Module, prior: Prior, x: Tensor, value_range: tuple[float, float] | None, *,
    together: bool = False, **options: Any,
) -> Reversal:  # fmt: skip
    """:func:`flexgen.reversal.reverse` under a prior, on images in `value_range`.

    A binary cross-entropy needs images in [0, 1]; for it both sides are moved there. With
    `together` all processes call this alike and share the work. Other options are those of
    :func:`prior_options`.
    """
    if value_range is not None:
        loss = options.get("loss", "mse")
        if in_unit_range(loss) and value_range != (0.0, 1.0):
            to_unit = ToUnit(*value_range)
            generator, x, value_range = Moved(generator, to_unit), to_unit(x), (0.0, 1.0)
        options["loss"] = in_range(loss, value_range)
    options = prior_options(prior, options)
    return (
        in_shares(reverse, generator, x, **options)
        if together
        else reverse(generator, x, **options)
    )


def reverse_split(
    model: Latent, data: Any, split: str, n: int | None, *, seed: int = 0, **options: Any
) -> Codes:
    """Codes of examples of a split under a model's decoder and prior, by reversal.

    Those whose loss is not finite are left out. The model is left as it was.

    Args:
        model: whose decoder is reversed.
        data: the data module.
        split: which part of the data.
        n: how many examples, at most what the split holds; None: all.
        seed: which examples, and of the reversal.
        **options: passed on to :func:`reverse_data`.
    """
    n = None if n is None else min(n, data.size(split))
    x, label = data.split(split, n, seed)
    context = context_of(model, label)
    decoder = _decoder(model)
    options |= {"seed": seed, "context": context}
    x = x.to(model.device)
    options = with_start(model, x, context, options, base=False)
    with model.evaluating():
        found = reverse_data(decoder, model.prior, x, data.range, **options)
    finite = found.loss.isfinite()
    return Codes(found.z[finite], None if context is None else context[finite])


def drawn_codes(
    model: Latent, x: Tensor, *, sigma: float, together: bool = False, **options: Any
) -> PosteriorCodes:
    """:func:`flexgen.posterior_codes` of data under a model, in its prior's base space.

    With `together` all processes call this alike and share the work.
    """
    options |= {"prior": model.prior.current, "sigma": sigma}
    decoder = _decoder(model)
    if together:
        return in_shares(posterior_codes, decoder, x, **options)
    return posterior_codes(decoder, x, **options)


def supported_sigma(model: Latent, data: Any, *, split: str, seed: int = 0, n: int = 256) -> float:
    """The root mean square error, over pixels and data, of reversed data of a split: σ of the noise
    that makes N(x; G(z), σ²I) largest at the codes that reversal finds."""
    n = min(n, data.size(split))
    x, label = data.split(split, n, seed)
    x = x.to(model.device)
    generator, prior = base_space(model)
    context = context_of(model, label)
    with model.evaluating():
        found = reverse_data(
            generator, prior, x, data.range, together=True, seed=seed, context=context
        )
    return float((2 * found.loss.mean() / x[0].numel()).sqrt())


def codes_of_data(
    model: Latent, data: Any, split: str, n: int | None, *, seed: int = 0,
    by_encoder: bool = False, sigma: float | None = None, **options: Any,
) -> Codes:  # fmt: skip
    """Codes of examples of a split, drawn from their posterior: a sample of the aggregate.

    Codes of an autoencoder are its own encoder's: of a VAE they are draws from the q(z|x) that it
    trains. Those of another model are :func:`drawn_codes`, mapped to Z, or, if it has an encoder
    that is asked for, by that.
    There are `n` codes of fewer examples too, several of each: states of one chain, `thin` apart.

    Args:
        model: left as it was.
        data: the data module.
        split: which part of the data.
        n: how many codes; None: one of each example.
        seed: which examples, and of the draws.
        by_encoder: whether the codes are those of the model's own encoder, whatever it is.
        sigma: of the noise on x; None: :func:`supported_sigma` of held-out data.
        **options: of :func:`flexgen.posterior_codes`.
    """
    x, label = data.split(split, None if n is None else min(n, data.size(split)), seed)
    n, x = n or len(x), x.to(model.device)
    datum = torch.arange(n) % len(x)
    context = context_of(model, label)
    # Of two splits by one seed: with the same noise, their codes would not be independent.
    own = int(np.random.SeedSequence([seed, *split.encode()]).generate_state(1)[0])
    of_each = None if context is None else context[datum]
    by_encoder = by_encoder or "autoencoder" in model.capabilities
    if by_encoder:
        codes = encoder_codes(model, x[datum], of_each, seed=own)
    else:
        sigma = sigma or supported_sigma(model, data, split="validation", seed=seed)
        options |= {"sigma": sigma, "seed": own, "draws": -(-n // len(x))}
        with model.evaluating(), torch.no_grad():
            states = drawn_codes(model, x, context=context, **options).states[:, 0]
            codes = model.prior.base_space().to_code(states.transpose(0, 1).flatten(0, 1)[:n])
    log_prior, prior = None, model.prior
    # Codes of an encoder without a bound are no draws of p(z|x), from which alone a gain follows.
    drawn_by_model = not by_encoder or "likelihood" in model.capabilities
    if drawn_by_model and prior.has_log_prob and prior.normalised:
        with torch.no_grad(), model.evaluating():
            log_prior = -prior.cross_entropy(codes, of_each)
    return Codes(codes, of_each, Draws(datum.to(codes.device), log_prior))


def rehearse(model: Latent, data: Any, split: str, options: dict[str, Any]) -> None:
    """Reverse two examples by one step, so that what `options` lack is told before training.

    Raises:
        ValueError: as :func:`flexgen.reversal.reverse` does.
        TypeError: for an option that it does not have.
    """
    short: dict[str, Any] = {"progress": False}
    for name, most in (("steps", 1), ("bank", 16)):
        asked = options.get(name, most)
        if asked is None or (isinstance(asked, int) and asked > most):
            short[name] = most
    with isolated_rng(0):
        reverse_split(model, data, split, 2, **{**options, **short})


def in_shares(find: Callable[..., Found], generator: nn.Module, x: Tensor, **options: Any) -> Found:
    """:func:`flexgen.reversal.reverse` or `posterior_codes`, called by every process alike, done
    once by all of them.

    Batch b is done by process b mod W, and every process gets all codes. The batches are those that
    one process would make, so the codes are its codes to the bit, whatever the generator's kernels
    make of a sample's companions. Where the samples of a batch are tied to each other
    (`norm="batch"`, `constraint="moments"`), each process does the whole.

    All arguments are the same in every process; process zero alone shows progress, and a history
    is not gathered.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    options["progress"] = options.get("progress", False) and rank == 0
    tied = options.get("norm") == "batch" or options.get("constraint") == "moments"
    if tied or world_size == 1:
        return find(generator, x, **options)
    if options.get("index") is None:
        options["index"] = torch.arange(len(x))
    given = [k for k in ("index", "context", "known") if k in options]
    given += ["init"] if isinstance(options.get("init"), Tensor) else []
    of_samples = {k: options.pop(k) for k in given}
    default = inspect.signature(find).parameters["batch_size"].default
    size = max(1, options.get("batch_size", default) // options.get("chains", 1))
    batches = torch.arange(len(x)).split(size)
    mine = None
    if rank < len(batches):
        rows = torch.cat(batches[rank::world_size])
        chosen = {k: None if v is None else v[rows] for k, v in of_samples.items()}
        found = find(generator, x[rows], **chosen, **options)
        on_cpu: dict[str, Any] = {k: v.cpu() for k, v in found.tensors().items()}
        mine = replace(found, **on_cpu)
    parts = [part for part in gather_from_all(mine) if part is not None]
    places = torch.cat([rows for r in range(world_size) for rows in batches[r::world_size]])
    order = places.argsort()
    whole: dict[str, Any] = {
        name: torch.cat([part.tensors()[name] for part in parts])[order].to(x.device)
        for name in parts[0].tensors()
    }
    return replace(parts[0], **whole)
