"""What measures a model at chosen steps: saved first, and never the loss of a training."""

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torchmetrics import Metric

from flexgen import contracts
from flexgen.callbacks.checkpoint import save_first
from flexgen.callbacks.scheduled import Scheduled
from flexgen.distributions import covariance
from flexgen.metrics import NSCD, EnergyDistance, GaussianKL, PriorAgreement, pag_interval
from flexgen.run_notes import RunNote, add_note, on_run
from flexgen.training import isolated_rng, rank

log = logging.getLogger(__name__)

ALONE: dict[str, Any] = {"sync_on_compute": False}
"""For the metrics of a measurement, each of which is taken of all the data by one process."""


def value_of(metric: Metric, *batch: Any) -> float:
    """What a metric makes of one batch."""
    metric.update(*batch)
    return float(metric.compute())


def energy_distance(drawn: Tensor, codes: Tensor) -> float:
    """From draws of a prior to codes."""
    distance = EnergyDistance(**ALONE).to(codes.device)
    distance.update(codes, real=True)
    return value_of(distance, drawn, False)


def cosine_distance(drawn: Tensor, codes: Tensor) -> float:
    """NSCD of codes to draws of a prior."""
    distance = NSCD(**ALONE).to(codes.device)
    distance.update(drawn, real=True)
    return value_of(distance, codes, False)


def divergence(codes: Tensor, draws: Tensor) -> float:
    """KL of codes `(n, d)` to draws from a prior, both taken as normal, in nats.

    Infinite, if the draws do not fill their space; n must be above d.
    """
    try:
        moments = draws.double().mean(0), covariance(draws)
        kl = GaussianKL(reference=moments, bias_correct=True, **ALONE)
        return value_of(kl.to(codes.device), codes)
    except ValueError:  # a covariance that is singular
        return math.inf


def agreement(name: str, z: Tensor, sigma: float = 1.0, **resampling: Any) -> dict[str, float]:
    """PAG of codes by a name, with its interval's ends where there are enough of them for one."""
    values = {name: value_of(PriorAgreement(sigma=sigma, **ALONE).to(z.device), z)}
    if len(z) >= _CODES_A_DIMENSION * z.shape[1]:
        low, high = pag_interval(z, sigma, **resampling)
        values |= {f"{name}_low": low, f"{name}_high": high}
    return values


def by_level(name: str, z: Tensor, levels: Sequence[int], sigma: float = 1.0) -> dict[str, float]:
    """PAG of each level of codes, the lowest first, as `name_level1` and so on; {} without."""
    parts = z.split(list(levels), 1) if levels else ()
    return {
        f"{name}_level{level}": value_of(PriorAgreement(sigma=sigma, **ALONE).to(z.device), part)
        for level, part in enumerate(parts, 1)
    }


# Of fewer, resamples of a bootstrap are singular.
_CODES_A_DIMENSION = 3


def check_codes(name: str, n: int, split: str, size: int, dim: int) -> None:
    """Refuses a PAG of `callbacks.<name>` of fewer codes than its interval can be had of."""
    asked, n, least = n, min(n, size), _CODES_A_DIMENSION * dim
    if asked < least <= size:
        raise ValueError(
            f"PAG needs at least {_CODES_A_DIMENSION} codes for each of {dim} dimensions, got "
            f"n={asked}; set n={least} or more, in a training `callbacks.{name}.n`, or leave it "
            f"out there with ~callbacks.{name}"
        )
    if n < least:
        raise ValueError(
            f"PAG needs at least {_CODES_A_DIMENSION} codes for each of {dim} dimensions, and "
            f"there would be {n} of {size} {split} data; set `data.num_{split}` and "
            f"`callbacks.{name}.n` to {least} or more, a smaller `latent_dim`, or leave it out "
            f"with ~callbacks.{name}"
        )


_LACKED = {
    "samples": "samples of the model",
    "prior": "a prior over codes, which this model does not have",
    "decoder": "a differentiable picture of each code to reverse, which this model does not have: "
    "its codes are names, or its likelihood has no mean",
    "encoder": "an encoder to codes, which this model does not have; train model=vae, ali, bigan "
    "or ae",
    "codebook": "codes that name vectors, which this model does not have; train model=vq_vae",
    "posterior": "a posterior, which this model does not have; train model=vae",
    "likelihood": "a likelihood p(x|z), which this model does not have; train model=vae",
    "log_likelihood": "a normalised density of codes and a likelihood, which this model does not "
    "have; train model=vae with prior=realnvp, say",
    "density": "a density of data in closed form, which this model does not have; train "
    "model=density",
    "score": "a critic, which this model does not have; train model=wgan_gp",
    "labels": "labels, which these data do not have",
}


class Measurement(contracts.Measurement, Scheduled):
    """Measures a model and logs what it found; `flexgen evaluate` calls `measure` alone.

    It draws from generators of its own seed, so that a run does not depend on being measured.

    The checkpoint of a step is on disk before anything is measured at it. A measurement that fails
    is a warning and a line of the run's `notes.jsonl`, and training goes on. A run that was killed
    while it measured, measures again when it is resumed.

    Among several processes, process zero measures and the others wait, unless `together` is set:
    then all call `measure` alike, which shares its work out and writes files from process zero.

    Args:
        seed: of everything that the measurement draws.
        **schedule: see :class:`Scheduled`.

    Attributes:
        split: the part of the data that it looks at; None: none.
    """

    split: str | None = None

    def __init__(self, *, seed: int = 0, **schedule: Any) -> None:
        super().__init__(**schedule)
        self.seed = seed
        self._resumed = False

    @property
    def state_key(self) -> str:
        return self._generate_state_key(every=self.every, at=self.at, at_end=self.at_end)

    def state_dict(self) -> dict[str, Any]:
        return {"acted_at": self._acted_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._acted_at, self._resumed = int(state_dict["acted_at"]), True

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.datamodule is None:  # type: ignore[attr-defined]
            raise ValueError(
                f"{type(self).__name__} measures on a data module's parts, and this trainer has "
                "none; call trainer.fit(model, datamodule=…) with one of flexgen.data"
            )

    def check(self, model: Any, data: Any) -> None:
        has = model.capabilities | ({"labels"} if data.num_classes else set())
        for need in self.needs:
            if need not in has:
                raise ValueError(
                    f"{type(self).__name__} needs {_LACKED[need]}; or leave it out of `callbacks`"
                )
        if self.split is not None and data.size(self.split) == 0:
            raise ValueError(
                f"{type(self).__name__} looks at the {self.split} part of the data, which is "
                f"empty; set `data.num_{self.split}` above 0"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        step, before = pl_module.counters.generator_steps, self._acted_at
        super().on_train_start(trainer, pl_module)
        if self._resumed and step and before != step and self.is_due(step, pl_module.schedule.end):
            self._acted_at = before  # it is saved first, and may be killed again
            self.act(trainer, pl_module)
            self._acted_at = step

    def act(self, trainer: pl.Trainer, model: Any) -> None:
        save_first(trainer, model)
        if self.together or trainer.is_global_zero:
            run_dir = Path(trainer.default_root_dir)
            values = self.attempt(model, trainer.datamodule, run_dir)  # type: ignore[attr-defined]
            if values:
                model.log_values(values)
        trainer.strategy.barrier()

    def attempt(self, model: Any, data: Any, run_dir: Path) -> dict[str, float] | None:
        """:meth:`run`; if it fails, a warning and a line of the run's notes, and None."""
        try:
            with isolated_rng(self.seed):
                return _numbers(self.measure(model, data, run_dir))
        except Exception as error:
            name, step = type(self).__name__, model.counters.generator_steps
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno}"
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})"
            log.warning(
                f"{name} failed at step {step}: {why}; the checkpoint of the step is saved; "
                f"measure again with {on_run('evaluate', run_dir)}"
            )
            if rank() == 0:
                add_note(run_dir, RunNote(step, name, True, why))
            return None

    def run(self, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        """:meth:`measure` with the generators kept apart, and its values as floats.

        Raises:
            ValueError: for a value that is no number, or a name that a table cannot hold.
        """
        with isolated_rng(self.seed):
            return _numbers(self.measure(model, data, run_dir))


def _numbers(found: Mapping[str, Any] | None) -> dict[str, float]:
    numbers = {}
    for name, value in (found or {}).items():
        if not name.isprintable() or {",", '"'} & {*name}:
            raise ValueError(f"a value's name must be a word such as loss/critic, got {name!r}")
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`{name}` must be one number, got {value!r}") from error
    return numbers
