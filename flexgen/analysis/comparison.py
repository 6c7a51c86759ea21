"""Several priors of one trained generator against the same held-out data and codes."""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexgen.analysis.priors import codes_of, prior_for
from flexgen.callbacks.measurement import ALONE, divergence
from flexgen.callbacks.quality import class_scores, classifier_of
from flexgen.codes import context_of, supported_sigma
from flexgen.metrics import (
    EnergyDistance,
    ModeCoverage,
    PrecisionRecall,
    PriorAgreement,
    earth_mover_distance,
)
from flexgen.models import Latent
from flexgen.models.latent import in_parts
from flexgen.priors import Prior
from flexgen.report import PriorRow, PriorTable
from flexgen.reversal import posterior_codes
from flexgen.runs.errors import error_line
from flexgen.runs.run import Run
from flexgen.training import isolated_rng

_FITTED = ("gaussian", "mixture", "kernel_density", "pushforward")
_OF_NAMES = ("categorical", "pixelcnn")
# What a normal is fitted to of a prior: of fewer, its own noise shows in the divergence.
_DRAWS = 10_000
_DRAWS_OF_EACH = 128  # of importance sampling, as a run takes
_BY_SCORE = ("masked", "weighted", "rejection", "langevin")


class NamedPrior(NamedTuple):
    """A prior to compare: its name in the table and its plain configuration, None for `own` and
    `base`, which the run holds. A prior that draws by score draws from the run's base, unless the
    configuration `names_base`."""

    label: str
    config: dict[str, Any] | None = None
    names_base: bool = False


def default_priors(model: Latent) -> list[str]:
    """The priors that are compared where none are named."""
    fixed = ["own"] if base_of(model) is model.prior.current else ["own", "base"]
    fitted = _FITTED if model.num_values is None else _OF_NAMES
    return [*fixed, *fitted, *(_BY_SCORE if "score" in model.capabilities else ())]


def base_of(model: Latent) -> Prior:
    """The prior that training started from; of one that draws by score, what it draws from."""
    prior = model.prior[0]
    while prior.unmasked is not None:
        prior = prior.unmasked
    return prior


class Comparison:
    """Measures priors of a trained run, each by as many sets of samples.

    Everything but the prior is shared: the generator, held-out data, their codes, the codes that
    priors are fitted to, the sizes and the seeds. Of set i both the draws and, for a prior that
    learns, the fit have seed i. There are `n` samples in each and held-out data of the split, and
    `n_fit` training data whose codes priors are fitted to, at most what there are; trained
    classifiers are kept in `cache_dir`. With `nll`, −log p(x) of the held-out data under each prior
    with a density, as the run's own is measured: see :meth:`_nll`. Nothing in the run changes.
    """

    def __init__(
        self, run: Run, *, n: int, n_fit: int, seeds: int, split: str, cache_dir: Path,
        nll: bool = False,
    ) -> None:  # fmt: skip
        self.run, self.seeds, self.split, self.nll = run, seeds, split, nll
        data = run.data
        self.n = min(n, data.size(split), data.size("train"))
        self.held_out, self.labels = data.split(split, self.n)
        model = run.latent
        self.codes = model.points(codes_of(run, split, self.n).z).cpu()
        if self.n <= (dim := self.codes.shape[1]):
            raise ValueError(
                f"`n` must be above the {dim} dimensions of a code, got {self.n} (the {split} part "
                f"holds {data.size(split)}); set n=1000"
            )
        self.context = context_of(model, self.labels)
        self.fit_codes = codes_of(run, "train", n_fit)
        images = data.num_classes and self.held_out.ndim == 4
        self.classifier = classifier_of(data, "validation", cache_dir) if images else None
        self.ais = {**(run.posterior_options or {})}
        if nll and "likelihood" not in run.latent.capabilities and not self.ais.get("sigma"):
            self.ais["sigma"] = supported_sigma(run.latent, data, split=split)
        self.rows = [self._floor()]

    def add(self, asked: NamedPrior) -> str:
        """Measure a prior; if it fails, its row says why. Returns what to tell of it."""
        started, fitted, model = time.monotonic(), 0.0, self.run.latent
        values: list[dict[str, float]] = []
        label, failed = asked.label, None
        try:
            for seed in range(self.seeds):
                before = time.process_time()
                prior = self._prior(asked, seed)
                fitted += time.process_time() - before
                with isolated_rng(seed), model.evaluating():
                    z = prior.draw(self.n, self.context)
                    x = model.decode(z, self.context).cpu()
                values.append(self._scores(x, model.points(z).cpu()))
                if self.nll:
                    values[-1] |= self._nll(prior, seed)
                values[-1] |= {
                    f"samples/{name}": float(value)
                    for name, value in prior.statistics.items()
                    if name != "critic_std"  # the critic's own scale, no score of a prior
                }
            if asked.config is None:
                label = f"{label} ({type(prior).__name__})"
            with isolated_rng(0), model.evaluating():
                draws = model.points(prior.draw(_DRAWS, model.in_turn(_DRAWS))).cpu()
            values[0] |= self._agreement(prior) | {"pag/fit": divergence(self.codes, draws)}
        except Exception as error:
            values, failed = [], error_line(error)
        self.rows.append(PriorRow(label, values, failed))
        fit = f", {fitted / self.seeds:.1f} CPU seconds a fit" if asked.config else ""
        return failed or f"{time.monotonic() - started:.1f} s{fit}"

    def table(self) -> PriorTable:
        space = "a classifier's features" if self.classifier else "the space of the data"
        about = (
            "The spread is of the draws, and of the fit where a prior learns, not of trainings of "
            f"the generator. {self.n} samples a set; {len(self.held_out)} {self.split} data and "
            f"{len(self.codes)} codes of theirs to compare with; {len(self.fit_codes.z)} codes of "
            "training data to learn from. Data (floor): training data and their codes in the place "
            f"of samples and draws. Precision to coverage are in {space}; the KL is to "
            f"{_DRAWS} draws, once (floor: to the codes to learn from); PAG is for normal priors "
            f"alone. {self.run.checkpoint}"
        )
        return PriorTable.of(self.rows, about)

    def check(self) -> None:
        """Say at the end, by a RuntimeError, which priors could not be measured."""
        if failed := [f"{row.label}: {row.failed}" for row in self.rows if row.failed]:
            raise RuntimeError(f"{len(failed)} of the priors failed, the others stand; {failed[0]}")

    def _prior(self, asked: NamedPrior, seed: int) -> Prior:
        model = self.run.latent
        if asked.config is None:
            return model.prior.current if asked.label == "own" else base_of(model)
        base = None if asked.names_base else base_of(model)
        return prior_for(
            self.run, asked.config, lambda: self.fit_codes, base=base, seed=seed,
            progress=sys.stdout.isatty(),
        )  # fmt: skip

    def _floor(self) -> PriorRow:
        """Training data and their codes in the place of samples and draws."""
        values, codes = [], self.run.latent.points(self.fit_codes.z).cpu()
        for seed in range(self.seeds):
            x, _ = self.run.data.split("train", self.n, seed)
            with isolated_rng(seed):
                z = codes[torch.randperm(len(codes))[: self.n]]
            values.append(self._scores(x, z))
        values[0]["pag/fit"] = divergence(self.codes, codes)
        return PriorRow("data (floor)", values, is_data=True)

    def _scores(self, x: Tensor, z: Tensor) -> dict[str, float]:
        """Scores of samples `(n, *shape)`, and of the codes they were made of, as points."""
        energy, spread = EnergyDistance(**ALONE), PrecisionRecall(self.classifier, **ALONE)
        for metric, real, made in ((energy, self.codes, z), (spread, self.held_out, x)):
            metric.update(real, real=True)
            metric.update(made, real=False)
        values = {"emd/samples": float(earth_mover_distance(x, self.held_out))}
        values["pag/samples"] = float(energy.compute())
        values |= {name: float(value) for name, value in spread.compute().items()}
        if (centres := self.run.data.centres) is not None:
            modes = ModeCoverage(centres, self.run.data.std, **ALONE)
            modes.update(x)
            values |= {f"modes/{name}": float(value) for name, value in modes.compute().items()}
        if self.classifier is not None:
            values |= class_scores(self.classifier, x, self.held_out, self.labels)
        return values

    def _nll(self, prior: Prior, seed: int) -> dict[str, float]:
        """−log p(x) of the held-out data in nats, by importance sampling under a VAE, else by
        annealed importance sampling with the run's settings; none under a prior without a density.

        All priors meet the same data by the same random numbers: differences say more than levels.
        """
        model: Any = self.run.latent
        x = self.held_out.to(model.device)
        of_codes = "likelihood" in model.capabilities
        p = prior if of_codes else prior.base_space().prior
        if not (p.has_log_prob and p.normalised):
            return {}
        with isolated_rng(seed), model.evaluating(), torch.no_grad():
            if of_codes:
                log_prob = torch.cat([
                    model.log_likelihood(part, _DRAWS_OF_EACH, context, prior=prior)
                    for part, context in in_parts(x, self.context, 256)
                ])  # fmt: skip
                return {"nll/samples": -float(log_prob.mean())}
            options = {"seed": seed, "context": self.context, **self.ais, "progress": False}
            found = posterior_codes(model.decoder, x, prior=prior, **options)
        return {"nll/ais": -float(found.log_prob.mean())}

    def _agreement(self, prior: Prior) -> dict[str, float]:
        """What takes no draws of a prior."""
        if prior.normal_scale is None:
            return {}
        agreement = PriorAgreement(sigma=prior.normal_scale, **ALONE)
        agreement.update(self.codes)
        return {"pag/unit": float(agreement.compute())}
