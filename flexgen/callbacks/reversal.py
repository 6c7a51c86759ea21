"""Generator reversal of held-out data, and the prior agreement score of its codes."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen.callbacks.drawing import draw_pairs
from flexgen.callbacks.scheduled import ALONE, Measurement
from flexgen.callbacks.sharing import reverse_together
from flexgen.files import write_atomically
from flexgen.metrics import EnergyDistance, GaussianKL, PriorAgreement, pag_interval
from flexgen.models import Generative
from flexgen.priors import BaseSpace
from flexgen.reversal import Reversal, reverse
from flexgen.reversal.losses import ToUnit
from flexgen.training import isolated_rng

__all__ = [
    "ReversalScore",
    "base_space",
    "codes_of_data",
    "codes_path",
    "load_codes",
    "prior_options",
    "rehearse",
    "reverse_data",
    "reverse_split",
]

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
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and reverse again") from error


class _Mapped(nn.Module):
    """G∘f, for a prior that is a map f."""

    def __init__(self, prior: nn.Module, generator: nn.Module) -> None:
        super().__init__()
        self.prior, self.generator = prior, generator

    def forward(self, eps: Tensor) -> Tensor:
        x: Tensor = self.generator(BaseSpace.of(self.prior).to_code(eps))
        return x


def base_space(model: Generative) -> tuple[nn.Module, nn.Module]:
    """The map from the prior's base space to data, and the prior there.

    With a prior that is a map f, a pushforward or a flow, it is G∘f, else G on Z itself.
    """
    prior = model.prior.current
    base = BaseSpace.of(prior).prior
    return (model.sampler, prior) if base is prior else (_Mapped(prior, model.sampler), base)


def prior_options(prior: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Options for :func:`flexgen.reversal.reverse` under a prior.

    With `constraint="auto"`, the default, codes are clipped to the prior's support if it has one.
    The codes of a bank are draws from the prior.
    """
    support = getattr(prior, "support", None)
    options = {"constraint": "auto", **options, "latent_shape": tuple(prior().event_shape)}
    if options["constraint"] == "auto":
        options["constraint"] = None if support is None else "clip"
    if options["constraint"] == "clip" and support is not None:
        options.setdefault("bounds", tuple(support))
    size = options.get("bank", 2048)
    searches = options.get("method", "auto") in ("auto", "lbfgs") or options.get("init") == "bank"
    if searches and isinstance(size, int):
        # Not the seed itself: whoever draws codes by it, to generate images and reverse them, would
        # find these very codes in the bank.
        own = np.random.SeedSequence([options.get("seed", 0), _BANK]).generate_state(1)
        with isolated_rng(int(own[0])):
            options["bank"] = prior().sample(torch.Size((size,)))
    return options


def reverse_data(
    generator: nn.Module,
    prior: nn.Module,
    x: Tensor,
    value_range: tuple[float, float] | None,
    *,
    together: bool = False,
    **options: Any,
) -> Reversal:
    """:func:`flexgen.reversal.reverse` under a prior, on images in `value_range`.

    A binary cross-entropy needs images in [0, 1]; for it both sides are moved there. With
    `together` all processes call this alike and share the work. Other options are those of
    :func:`prior_options`.
    """
    if options.get("loss") == "bce" and value_range is not None and value_range != (0.0, 1.0):
        to_unit = ToUnit(*value_range)
        generator, x = nn.Sequential(generator, to_unit), to_unit(x)
    find = reverse_together if together else reverse
    return find(generator, x, **prior_options(prior, options))


def reverse_split(
    model: Generative, data: Any, split: str, n: int | None, *, seed: int = 0, **options: Any
) -> Tensor:
    """Codes of examples of a split under a model's sampler and prior.

    Args:
        model: whose sampler is reversed; it is left as it was.
        data: the data module.
        split: which part of the data.
        n: how many examples, at most what the split holds; None: all.
        seed: which examples, and of the reversal.
        **options: passed on to :func:`reverse_data`.

    Returns:
        Codes, `(n, latent_dim)`, those without a finite loss left out.
    """
    n = None if n is None else min(n, data.size(split))
    x, _ = data.split(split, n, seed)
    with model.evaluating():
        found = reverse_data(
            model.sampler, model.prior, x.to(model.device), data.range, seed=seed, **options
        )
    return found.z[found.loss.isfinite()]


def codes_of_data(
    model: Generative, data: Any, split: str, n: int | None, *, seed: int = 0, **options: Any
) -> Tensor:
    """Codes that a model gives examples of a split: its posterior's draws, else by reversal.

    Arguments and value are those of :func:`reverse_split`, which takes `options`. But a posterior
    gives `n` codes of fewer examples too, several of each, a sample of the same aggregate.
    """
    x, _ = data.split(split, None if n is None else min(n, data.size(split)), seed)
    # Of two splits by one seed: with the same noise, their codes would not be independent.
    own = np.random.SeedSequence([seed, *split.encode()]).generate_state(1)
    with isolated_rng(int(own[0])):
        codes = model.encode(x[torch.arange(n or len(x)) % len(x)].to(model.device))
    if codes is None:
        codes = reverse_split(model, data, split, n, seed=seed, **options)
    return codes


def rehearse(model: Generative, data: Any, split: str, options: dict[str, Any]) -> None:
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


class ReversalScore(Measurement):
    """Reverses held-out data and scores the prior with PAG, beside both of its controls.

    Under a prior that is a map f of a simple one, a pushforward or a flow, the codes are those of
    G∘f in its base space, against the normal there (`space=base`): the same normal in the same
    dimension as before a refit. A step of the descent then takes f in its direction to codes,
    which for MAF is one step a coordinate. `space=code` takes codes in Z, and so do priors without
    such a map; they are scored against a normal with the prior's own spread.

    Logged: `pag/unit` with `pag/unit_low` and `pag/unit_high`, `pag/literal`, the full Gaussian
    KL `pag/kl` and its mean term `pag/kl_mean`; codes in Z against draws from the prior on Z,
    `pag/fit` (KL of their normals) and `pag/samples` (energy distance); `reversal/error` (the mean
    per-image loss) and `reversal/converged` (a share); `own/pag_true` and `own/pag_reversed`, the
    score of codes that generated images and of those images reversed, with `own/error`.

    Args:
        n: how many images; at most what the split holds.
        split: which part of the data they come from.
        space: "base" or "code".
        sigma: standard deviation of the prior scored against; None: that of the space's prior.
        num_resamples: of the bootstrap interval.
        options: passed on to :func:`flexgen.reversal.reverse`, e.g. `loss`, `method`, `steps`.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Raises:
        ValueError: for an unknown space, or too few resamples.
    """

    together = True

    def __init__(
        self,
        *,
        n: int = 1024,
        split: str = "validation",
        space: str = "base",
        sigma: float | None = None,
        num_resamples: int = 1000,
        options: dict[str, Any] | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if space not in ("base", "code"):
            raise ValueError(f"`space` must be base or code, got {space!r}")
        if n < 1:
            raise ValueError(f"`n` must be at least 1, got {n}")
        if num_resamples < 40:
            raise ValueError(
                f"`num_resamples` must be at least 40 for an interval, got {num_resamples}; "
                "1000 is usual"
            )
        self.n, self.split, self.space, self.sigma = n, split, space, sigma
        self.num_resamples, self.options = num_resamples, dict(options or {})

    def check(self, model: Generative, data: Any) -> None:
        super().check(model, data)
        rehearse(model, data, self.split, self.options)

    def measure(self, model: Generative, data: Any, run_dir: Path) -> dict[str, float]:
        n = min(self.n, data.size(self.split))
        x, label = data.split(self.split, n, self.seed)
        index = data.indices(self.split, n, self.seed)
        x = x.to(model.device)
        if self.space == "base":
            generator, prior = base_space(model)
        else:
            generator, prior = model.sampler, model.prior.current
        base = prior()
        options = {"seed": self.seed, "index": index, "together": True, **self.options}
        with model.evaluating():
            found = reverse_data(generator, prior, x, data.range, **options)
            in_z = found.z
            if prior is not model.prior.current:
                in_z = reverse_data(model.sampler, model.prior, x, data.range, **_quiet(options)).z
            true_codes = base.sample((len(x),))
            with torch.no_grad():
                own = generator(true_codes)
            again = reverse_data(generator, prior, own, data.range, **_quiet(options))
        sigma = self.sigma or _spread(base)
        values = self._score(found, sigma)
        values |= _against_draws(in_z, model.prior())
        values["own/pag_true"] = _pag(true_codes, sigma)
        values["own/pag_reversed"] = _pag(again.z, sigma)
        values["own/error"] = float(again.loss.mean())
        step = model.counters.generator_steps
        self._save(codes_path(run_dir, step), found, index, label, sigma)
        if x.ndim == 4:
            path = run_dir / "images" / "reconstructions" / f"step={step:08d}.png"
            rank_zero_only(draw_pairs)(x[:40], found.x_hat[:40], data.range, path)
        return values

    def _score(self, found: Reversal, sigma: float) -> dict[str, float]:
        kl = GaussianKL(sigma=sigma, **ALONE).to(found.z.device)
        kl.update(found.z)
        low, high = pag_interval(
            found.z, sigma=sigma, num_resamples=self.num_resamples, seed=self.seed
        )
        return {
            "pag/unit": _pag(found.z, sigma),
            "pag/unit_low": float(low),
            "pag/unit_high": float(high),
            "pag/literal": _pag(found.z, sigma, "literal"),
            "pag/kl": float(kl.compute()),
            "pag/kl_mean": float(kl.mean_term()),
            "reversal/error": float(found.loss.mean()),
            "reversal/converged": float(found.converged.float().mean()),
        }

    @rank_zero_only
    def _save(
        self, path: Path, found: Reversal, index: Tensor, label: Tensor | None, sigma: float
    ) -> None:
        tensors = {
            "z": found.z.cpu().contiguous(),
            "loss": found.loss.cpu(),
            "index": index,
            "converged": found.converged.cpu(),
            "singular_values": torch.linalg.svdvals(found.z.double()).cpu(),
        }
        if label is not None:
            tensors["label"] = label.cpu()
        about = {
            "n": self.n, "split": self.split, "seed": self.seed, "space": self.space,
            "sigma": sigma, **self.options,
        }  # fmt: skip
        metadata = {name: str(value) for name, value in about.items()}
        write_atomically(path, lambda beside: save_file(tensors, beside, metadata))


def _quiet(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "progress": False}


def _against_draws(z: Tensor, prior: Distribution) -> dict[str, float]:
    """Codes in Z against draws from the prior on Z, whatever it is."""
    draws = prior.sample(torch.Size((10_000,)))
    moments = draws.double().mean(0), draws.double().mT.cov()
    kl = GaussianKL(reference=moments, bias_correct=True, **ALONE).to(z.device)
    kl.update(z)
    distance = EnergyDistance(**ALONE).to(z.device)
    distance.update(z, real=True)
    distance.update(draws[: len(z)], real=False)
    return {"pag/fit": float(kl.compute()), "pag/samples": float(distance.compute())}


def _spread(prior: Distribution) -> float:
    """Root mean variance per coordinate; of draws, where the distribution does not state it."""
    try:
        variance = prior.variance
    except NotImplementedError:
        variance = prior.sample(torch.Size((10_000,))).var(0)
    return float(variance.detach().mean().sqrt())


def _pag(z: Tensor, sigma: float, convention: Literal["unit", "literal"] = "unit") -> float:
    score = PriorAgreement(sigma=sigma, convention=convention, **ALONE).to(z.device)
    score.update(z)
    return float(score.compute())
