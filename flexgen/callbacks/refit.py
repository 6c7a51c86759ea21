"""Learns the data-induced prior in mid-training and swaps it in."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from flexgen.callbacks.measurement import energy_distance
from flexgen.callbacks.scheduled import Scheduled
from flexgen.checks import check_integer, check_one_of
from flexgen.codes import Codes, codes_of_data, context_of, encoder_codes, rehearse, reverse_split
from flexgen.models import Latent
from flexgen.priors import as_prior
from flexgen.training import isolated_rng, rank

log = logging.getLogger(__name__)


class PriorRefit(Scheduled):
    """Fits a prior to the codes of training data, and goes on from it if it is closer.

    Each step in `at` is one round, with a stage of the model's prior of its own. Before each the
    whole state is saved as `checkpoints/before_refit_step=….ckpt`, so that another prior, or none,
    can go on from the same point: `flexgen refit run=… checkpoint=before_refit_step=….ckpt`.

    Closer means: a smaller energy distance from draws to the codes of held-out data than the prior
    in use has. It is unbiased: at the sizes of codes the earth mover's distance between two samples
    is mostly their noise, and calls a prior that is too narrow closer than the right one. Of
    posterior draws, if both priors have a density, it means a larger log p(x) of held-out data,
    estimated from their draws: see :meth:`flexgen.contracts.Draws.gain`. −log p(z) of these draws,
    which only bounds it, rises while log p(x) does, as the posterior moves with the prior.

    Logged: `refit/energy_before`, `refit/energy_after`, `refit/energy_floor` (the distance of the
    training codes themselves, about 0), of posterior draws `refit/gain` (nats of a held-out datum),
    `refit/nll_before` and `refit/nll_after` (nats of a held-out code), `refit/condition` where the
    fit reports it, `refit/kept` and `prior/stage`.

    Args:
        prior: the prior to fit, untrained; every round fits a copy of it.
        at: generator steps of the rounds.
        n: codes of training images, no more by reversal than there are, and several of an image
            where there are fewer; None: one of each.
        n_held_out: codes of held-out images.
        keep: "closer", "always" or "never".
        source: of the codes. "posterior": draws of p(z|x), from each image in turn, a sample of the
            aggregate posterior: by an autoencoder's own encoder, or of a model without one as
            :func:`flexgen.posterior_codes` draws them, under the prior in use. "encoder": codes by
            the model's own encoder, which an adversarial game has trained. "reversal": the ends
            of a search, which measure the search as well. "prior": draws from the prior in use,
            which distils a prior that needs the critic, a masked one say, into one that does not;
            `refit/energy_after` against `refit/energy_floor` is what that loses.
        sigma: of the noise on x in p(z|x); None: what the generator's reconstructions support.
        posterior: passed on to :func:`flexgen.posterior_codes`.
        options: passed on to :func:`flexgen.reversal.reverse`.
        seed: of the draws and the fit; training draws the same numbers with or without a refit.
        progress: whether to draw progress bars.

    Raises:
        ValueError: for an unknown `keep` or `source`, for `keep="closer"` with draws from the
            prior itself, to which none is closer, or no step in `at`.

    Source: Kilcher et al., section 3 and figure 1; of a VAE, whose best prior is its aggregate
    posterior, Hoffman & Johnson, "ELBO surgery", 2016.
    """

    def __init__(
        self,
        prior: nn.Module,
        *,
        at: list[int],
        n: int | None = None,
        n_held_out: int = 1000,
        keep: str = "closer",
        source: str = "posterior",
        sigma: float | None = None,
        posterior: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        super().__init__(at=at, at_end=False)
        if keep not in ("closer", "always", "never"):
            raise ValueError(f"`keep` must be closer, always or never, got {keep!r}")
        check_one_of("source", source, ("posterior", "encoder", "reversal", "prior"))
        if source == "prior" and keep == "closer":
            raise ValueError(
                "`keep=closer` cannot be met with `source=prior`, no prior is closer to its own "
                "draws; set `refit.keep=always`"
            )
        for name, count in (("n", 1 if n is None else n), ("n_held_out", n_held_out)):
            check_integer(name, count)
        if not self.at:
            raise ValueError("`at` must name the generator steps of a refit, got none")
        self.prior, self.keep, self.n, self.n_held_out = as_prior(prior), keep, n, n_held_out
        self.source, self.posterior = source, {"sigma": sigma, **(posterior or {})}
        self.options, self.seed, self.progress = dict(options or {}), seed, progress
        self._stage_at: dict[int, int] = {}
        self._done: list[int] = []

    @property
    def state_key(self) -> str:
        # By the first alone: a run that starts from a checkpoint between two rounds has only those
        # before it, and must find them done.
        return self._generate_state_key(at=self.at[:1])

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done = list(state_dict["done"])

    def add_stages(self, model: Any) -> None:
        """Give the model's prior a stage for each round, once; before a checkpoint is loaded.

        Raises:
            ValueError: if it has no prior, or could not train with this one.
        """
        if "prior" not in model.capabilities:
            raise ValueError(
                f"a {type(model).__name__} has no codes and no prior to refit; train model=vae or "
                "an adversarial one, or leave `refit` out of `callbacks`"
            )
        for step in self.at if not self._stage_at else ():
            model.check_prior(self.prior)
            fresh = copy.deepcopy(self.prior).requires_grad_(False)
            self._stage_at[step] = model.prior.append(model.bind(fresh))

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.add_stages(pl_module)

    def check(self, model: Latent, data: Any) -> None:
        super().check(model, data)
        if not self.prior.learns:
            # Its own words, which say what learns instead.
            self.prior.fit(torch.zeros(2, model.latent_dim))
        x, label = data.split("train", 2, self.seed)
        context = context_of(model, label)
        if self.source == "reversal":
            rehearse(model, data, "train", self.options)
        if self.source == "encoder":
            encoder_codes(model, x.to(model.device), context, seed=self.seed)
        if self.source == "posterior" and "autoencoder" not in model.capabilities:
            short = {"sigma": 1.0, "num_temperatures": 1, "progress": False}
            codes_of_data(model, data, "train", 2, seed=self.seed, **self.posterior | short)
        end = model.schedule.end
        if late := [step for step in self.at if end is not None and step > end]:
            log.warning("refit: no refit at %s, the last step is %d", late, end)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        # A run that starts from another's checkpoint refits before its first step.
        if self._acted_at in self.at and self._acted_at not in self._done:
            self.act(trainer, pl_module)

    def act(self, trainer: pl.Trainer, model: Any) -> None:
        step = model.counters.generator_steps
        run_dir = Path(trainer.default_root_dir)
        trainer.save_checkpoint(run_dir / "checkpoints" / f"before_refit_step={step:08d}.ckpt")
        self._done.append(step)
        stage = self._stage_at[step]
        with isolated_rng(self.seed):
            values = self.refit(model, trainer.datamodule, stage)  # type: ignore[attr-defined]
        if values:
            model.log_values(values)
        if trainer.world_size > 1:
            # One process fits, and all take its prior: fitted apart, they might differ.
            fitted = model.prior.stages[stage].state_dict(), model.prior.in_use
            weights, in_use = trainer.strategy.broadcast(fitted)
            model.prior.stages[stage].load_state_dict(weights)
            model.prior.use(in_use)

    def refit(self, model: Latent, data: Any, stage: int) -> dict[str, float]:
        """Fit stage `stage` to the codes of data and use it if `keep` says so.

        All processes find the codes together; process zero fits, the others return nothing.
        """
        prior = model.prior[stage]
        codes = self._codes(model, data, "train", self.n)
        held_out = self._codes(model, data, "validation", self.n_held_out)
        if rank() > 0:
            return {}
        options: dict[str, Any] = {"context": codes.context, "seed": self.seed}
        if codes.draws is not None:
            options["draws"] = codes.draws
        fitted = prior.fit(codes.z, progress=self.progress, **options)
        # A prior of posteriors draws by the model's encoder, whose batch norms must not move.
        with torch.no_grad(), model.evaluating():
            n, context = len(codes.z), codes.context
            drawn = {"before": model.prior.draw(n, context), "after": prior.draw(n, context)}
            drawn["floor"] = codes.z
            there = model.points(held_out.z)
            values = {
                f"refit/energy_{when}": energy_distance(model.points(z), there)
                for when, z in drawn.items()
            }
            draws = held_out.draws
            by_density = (
                draws is not None
                and draws.log_prior is not None
                and all(p.has_log_prob and p.normalised for p in (model.prior, prior))
            )
            if draws is not None and by_density:
                for when, p in (("before", model.prior), ("after", prior)):
                    nll = float(p.cross_entropy(held_out.z, held_out.context).mean())
                    values[f"refit/nll_{when}"] = nll
                log_prob = -prior.cross_entropy(held_out.z, held_out.context)
                values["refit/gain"] = float(draws.gain(log_prob).mean())
        values |= {f"refit/{name}": value for name, value in fitted.items()}
        closer = values["refit/energy_after"] < values["refit/energy_before"]
        if by_density:
            closer = values["refit/gain"] > 0
        kept = self.keep == "always" or (self.keep == "closer" and closer)
        if kept:
            model.prior.use(stage)
        self._tell(values, kept, closer)
        return values | {"refit/kept": float(kept), "prior/stage": float(model.prior.in_use)}

    def _codes(self, model: Latent, data: Any, split: str, n: int | None) -> Codes:
        if self.source == "prior":
            n = n or data.size(split)
            context = model.in_turn(n)
            with model.evaluating():
                return Codes(model.prior.draw(n, context), context)
        options = {"seed": self.seed, "progress": self.progress, "together": True}
        if self.source in ("posterior", "encoder"):
            options |= {"by_encoder": self.source == "encoder"}
            return codes_of_data(model, data, split, n, **options | self.posterior)
        return reverse_split(model, data, split, n, **options | self.options)

    def _tell(self, values: dict[str, float], kept: bool, closer: bool) -> None:
        found = {name.removeprefix("refit/"): value for name, value in values.items()}
        log.info(
            "refit: energy distance to held-out codes {energy_before:.4f} -> {energy_after:.4f} "
            "(training codes: {energy_floor:.4f})".format(**found)
        )
        if "gain" in found:
            nats = "{nll_before:.3f} -> {nll_after:.3f} nats".format(**found)
            log.info("refit: log p(x) of held-out data, by their codes: %+.3f nats", found["gain"])
            log.info("refit: -log p(z) of held-out codes %s", nats)
        near, use = "closer" if closer else "not closer", "in use" if kept else "dropped"
        log.info("refit: so the new prior is %s and is %s", near, use)
        if (condition := found.get("condition", 1.0)) < 0.01:
            log.warning(
                "refit: the fitted prior has nearly lost a dimension (relative condition %.1e); "
                "keep `skip: true`, or use batch norm in its network", condition,
            )  # fmt: skip
