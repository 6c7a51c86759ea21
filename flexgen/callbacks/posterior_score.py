"""Codes of held-out data as draws of their posterior: the prior's score, and the likelihood."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from flexgen.callbacks.measurement import (
    Measurement,
    agreement,
    by_level,
    check_codes,
    cosine_distance,
    energy_distance,
)
from flexgen.checks import check_integer, check_positive
from flexgen.codes import base_space, context_of, drawn_codes, supported_sigma
from flexgen.contracts import in_context
from flexgen.files import write_tensors
from flexgen.models import Latent
from flexgen.training import isolated_rng


class PosteriorScore(Measurement):
    """Scores the prior by draws of p(ε|x) of held-out data, and log p(x) of the same data.

    Codes that data induce are draws from p(ε|x) ∝ p(ε) N(x; G(f(ε)), σ²I), in the base space of
    the prior f#p(ε): see :func:`flexgen.posterior_codes`. If the prior is right they are draws of
    p(ε) on average over the data, whatever the generator and the map are, and PAG is 0. The control
    are codes of as many samples of the model itself with noise of σ: theirs is 0 in theory, and if
    its interval misses 0 the chains are too short, and no score of theirs can be believed. Under a
    prior of levels `pag/posterior_level1` and so on are of each level's own noise.

    Logged: `pag/posterior` (unit, bias-corrected) with `pag/posterior_low` and `_high`;
    `own/pag_posterior` with the same ends; `pag/posterior_energy`, the energy distance from codes
    to draws of p(ε), and `pag/posterior_nscd` with its control `own/nscd_posterior`, see
    :class:`~flexgen.metrics.NSCD`; `nll/ais`, −log p(x) in nats, a mean over data, with
    `nll/ais_standard_error` over them and `nll/ais_gap`: on the control's data the upper bound of
    log p less the lower one. A level is known no better than that; differences between two models
    on the same data are, and each datum's value is kept in `nll/step=….safetensors` to pair them.
    `ais/sigma` is σ, without which no value means anything, and `ais/acceptance` that of the
    chains.

    Args:
        n: how many data; at most what the split holds.
        split: which part of the data they come from.
        sigma: σ, in the data's units; None: what the generator's own reconstructions support, the
            root mean square error of its reversed held-out data, found once a run.
        num_resamples: of the bootstrap intervals.
        options: passed on to :func:`flexgen.posterior_codes`, e.g. `num_temperatures`.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Source: Wu et al., 2017, section 3, for the likelihood; Grosse et al., 2015, for the gap.
    """

    needs = ("decoder",)
    together = True
    split: str

    def __init__(
        self,
        *,
        n: int = 512,
        split: str = "validation",
        sigma: float | None = None,
        num_resamples: int = 1000,
        options: dict[str, Any] | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        check_integer("n", n)
        check_integer("num_resamples", num_resamples, 40, "1000 is usual for an interval")
        if sigma is not None:
            check_positive("sigma", sigma, "null takes what the reconstructions support")
        self.n, self.split, self.sigma = n, split, sigma
        self.num_resamples, self.options = num_resamples, dict(options or {})

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sigma": self.sigma}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.sigma = self.sigma or state_dict["sigma"]

    def check(self, model: Latent, data: Any) -> None:
        super().check(model, data)
        if "posterior" in model.capabilities:
            raise ValueError(
                f"a {type(model).__name__} has a posterior of its own, from which its codes are "
                "drawn; set callbacks=vae, or leave posterior_score out of `callbacks`"
            )
        dim = base_space(model)[1].latent_dim
        check_codes("posterior_score", self.n, self.split, data.size(self.split), dim)
        x, label = data.split(self.split, 2, self.seed)
        with isolated_rng(0), model.evaluating():
            short = self.options | {"num_temperatures": 1, "progress": False}
            x, context = x.to(model.device), context_of(model, label)
            drawn_codes(model, x, sigma=self.sigma or 1.0, context=context, **short)

    def measure(self, model: Latent, data: Any, run_dir: Path) -> dict[str, float]:
        n = min(self.n, data.size(self.split))
        x, label = data.split(self.split, n, self.seed)
        index = data.indices(self.split, n, self.seed)
        x, context = x.to(model.device), context_of(model, label)
        if self.sigma is None:
            self.sigma = supported_sigma(model, data, split=self.split, seed=self.seed)
        options = {
            "sigma": self.sigma, "seed": self.seed, "context": context, "together": True,
            **self.options,
        }  # fmt: skip
        generator, prior = base_space(model)
        with model.evaluating():
            found = drawn_codes(model, x, index=index, **options)
            known = prior.draw(n, context)
            with torch.no_grad():
                own = in_context(generator, known, context)
            own = own + self.sigma * torch.randn_like(own)
            # With the same noise its chains would not be independent of the data's.
            options |= {"seed": self.seed + 1, "progress": False}
            below = drawn_codes(model, own, **options)
            above = drawn_codes(model, own, known=known, **options)
            draws = prior.draw(n, context)
        nll = -found.log_prob.double()
        values = {
            "nll/ais": float(nll.mean()),
            "nll/ais_standard_error": float(nll.std() / n**0.5),
            "nll/ais_gap": float((above.log_prob - below.log_prob).mean()),
            "pag/posterior_energy": energy_distance(draws, found.z),
            "pag/posterior_nscd": cosine_distance(draws, found.z),
            "own/nscd_posterior": cosine_distance(draws, below.z),
            "ais/sigma": self.sigma,
            "ais/acceptance": float(found.acceptance.mean()),
        }
        scale = prior.normal_scale
        if scale is not None:
            resampling = {"num_resamples": self.num_resamples, "seed": self.seed}
            for name, z in (("pag/posterior", found.z), ("own/pag_posterior", below.z)):
                values |= agreement(name, z, scale, **resampling)
            values |= by_level("pag/posterior", found.z, model.prior.levels, scale)
        path = run_dir / "nll" / f"step={model.counters.generator_steps:08d}.safetensors"
        gap = above.log_prob - below.log_prob
        self._save(path, {"z": found.z, "nll": nll, "index": index, "own_gap": gap}, found.how)
        return values

    @rank_zero_only
    def _save(self, path: Path, tensors: dict[str, Tensor], how: str) -> None:
        options = {k: v for k, v in self.options.items() if k not in ("progress", "batch_size")}
        settings = ", ".join(f"{k}={v}" for k, v in {"sigma": self.sigma, **options}.items())
        about = {"split": self.split, "seed": str(self.seed), "settings": settings, "how": how}
        kept = {name: value.cpu().contiguous() for name, value in tensors.items()}
        write_tensors(path, kept, about)
