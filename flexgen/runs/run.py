"""A run opened again: its model, data and measurements, and what it left in its folder."""

from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from flexgen.callbacks import Measurement, PosteriorScore, ReversalScore
from flexgen.codes import base_space, load_codes, reverse_data, with_start
from flexgen.models import Latent
from flexgen.report import RunFiles
from flexgen.reversal import Reversal
from flexgen.run_notes import on_run, read_notes
from flexgen.runs.build import Objects, build
from flexgen.runs.errors import MeasurementFailed
from flexgen.runs.folder import find_checkpoint, write_json
from flexgen.runs.preconditions import check_recorded
from flexgen.runs.saved_config import load_config
from flexgen.runs.trust import rebuilding
from flexgen.training import Loop, isolated_rng, load_checkpoint


def open_run(path: str | Path, trust: bool = False, *, checkpoint: str | None = None) -> "Run":
    """A run from its folder, which may have been moved since.

    With `trust` it may build classes that are not FlexGen's and write outside its folder: that runs
    whatever code its configuration names. A `checkpoint` is as :class:`Run` takes it.

    Raises:
        FileNotFoundError: if it is not the folder of a run.
        ValueError: if its configuration is damaged, or may not do what it says.
    """
    return Run(load_config(Path(path).resolve(), trust), checkpoint)


class Run:
    """A run: its configuration, what that builds, and what it left in its folder.

    Model, data and callbacks are built when they are first asked for, the weights read from
    `checkpoint`. `config` may be changed until then, to `run.config["trainer"]["accelerator"] =
    "cpu"` say. Where the configuration sets `threads`, building sets torch's for the process.

    Args:
        config: plain values, as :func:`flexgen.runs.compose.compose` gives or the run has saved.
        checkpoint: the name of one in its `checkpoints/`, or a path; None: the last one.
    """

    def __init__(self, config: dict[str, Any], checkpoint: str | None = None) -> None:
        self.config = config
        self.folder = Path(config["paths"]["run_dir"])
        self._checkpoint = checkpoint
        self._built: Objects | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def build(self) -> "Run":
        """Build all with the weights that its seed gives, as a training starts; returns itself.

        Python's, NumPy's and torch's generators are seeded by it too.

        Raises:
            ValueError: if the networks, the prior and the data do not fit each other.
        """
        self._built = build(self.config)
        return self

    @property
    def model(self) -> Loop:
        """The LightningModule, with the weights and counters of `checkpoint`; FileNotFoundError if
        there is none, ValueError if it is damaged, or does not fit the configuration."""
        return self._objects[0]

    @property
    def latent(self) -> Latent:
        """The model, where it has codes and a prior over them; a ValueError where it has none."""
        if "prior" not in self.model.capabilities:
            raise ValueError(
                f"{self.folder} is a run of a {type(self.model).__name__}, which has no codes and "
                "no prior to reverse, refit or compare; `flexgen sample` and `flexgen evaluate` "
                "work, or train model=vae or an adversarial one"
            )
        return cast(Latent, self.model)

    @property
    def data(self) -> Any:
        """The data module: `split("validation", n)` gives data and labels."""
        return self._objects[1]

    @property
    def callbacks(self) -> dict[str, pl.Callback]:
        """What acts in training, by the names in `config["callbacks"]`."""
        return self._objects[2]

    @property
    def measurements(self) -> dict[str, Measurement]:
        """Those of the callbacks that measure."""
        return {k: v for k, v in self.callbacks.items() if isinstance(v, Measurement)}

    @cached_property
    def checkpoint(self) -> Path:
        """The file that the model's weights are read from; FileNotFoundError if there is none."""
        return find_checkpoint(self.folder, self._checkpoint)

    @property
    def metrics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each metric the generator steps at which it was logged, and its values, `(n,)` each;
        ValueError if the run has logged nothing, or its files are damaged."""
        curves = RunFiles.load(self.folder).curves
        return {name: (curve.steps, curve.values) for name, curve in curves.items()}

    def codes(self, step: int | None = None) -> dict[str, Tensor]:
        """Codes of data saved at a step, None: the last: `z (n, latent_dim)`, `loss`, `index`, ….

        Raises:
            FileNotFoundError: if there are none.
            ValueError: if they are damaged.
        """
        found = RunFiles.load(self.folder).codes
        if not found or step not in (None, *found):
            asked = "" if step is None else f" of step {step}"
            there = ", ".join(map(str, found)) or "none"
            raise FileNotFoundError(
                f"{self.folder} has no codes{asked}, there are {there}; "
                f"`{on_run('reverse', self.folder)}` makes them"
            )
        return load_codes(found[max(found) if step is None else step])

    def sample(self, n: int, seed: int = 0, context: Tensor | None = None) -> Tensor:
        """Draw n data points, `(n, *shape)`; codes, where there are any, from the prior in use.

        The context are labels `(n,)` of a conditional run; None: its classes in turn.
        """
        with isolated_rng(seed):
            return self.model.sample(n, self._labels(context))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Data `(n, *shape)` of codes `(n, latent_dim)`, and of labels as :meth:`sample` takes."""
        return self.latent.decode(z.to(self.model.device), self._labels(context))

    def reverse(
        self, x: Tensor, *, context: Tensor | None = None, space: str = "code", **options: Any
    ) -> Reversal:
        """Codes of data `(n, *shape)`, in the range of the run's own, found by search.

        Args:
            x: the data.
            context: their labels `(n,)`, of a conditional run.
            space: "code", of `decode`; or "base", under a prior that is a pushforward or a flow.
            **options: of :func:`flexgen.reversal.reverse`, on top of `reversal_options`; and
                `init="encoder"`, the codes of the model's own.

        Raises:
            ValueError: if `space` is neither, or as :func:`flexgen.reversal.reverse` does.
        """
        if space not in ("code", "base"):
            raise ValueError(f"`space` must be code or base, got {space!r}")
        model = self.latent
        generator, prior = base_space(model)
        in_base = space == "base" and prior is not model.prior.current
        if space == "code":
            assert model.decoder is not None  # else there is no base space either
            generator, prior = model.decoder, model.prior
        x, context = x.to(model.device), self._labels(context)
        options = {**self.reversal_options, "context": context, **options}
        options = with_start(model, x, context, options, base=in_base)
        with model.evaluating():
            return reverse_data(generator, prior, x, self.data.range, **options)

    def _labels(self, context: Tensor | None) -> Tensor | None:
        return None if context is None else context.to(self.model.device)

    @property
    def reversal_options(self) -> dict[str, Any]:
        """What the run's own reversal is told, see :func:`flexgen.codes.reverse_data`."""
        scores = (m for m in self.measurements.values() if isinstance(m, ReversalScore))
        return next((score.options for score in scores), {})

    @property
    def posterior_options(self) -> dict[str, Any] | None:
        """What the run's own posterior draws are told, see :func:`flexgen.codes.codes_of_data`."""
        scores = (m for m in self.measurements.values() if isinstance(m, PosteriorScore))
        return next(({"sigma": score.sigma, **score.options} for score in scores), None)

    def evaluate(self) -> dict[str, float]:
        """Measure everything that the run measures once more; saved as `evaluation.json` too.

        ValueError if something cannot be measured of such a run; MeasurementFailed if something
        failed: what did not is saved, and its `values`.
        """
        values: dict[str, float] = {}
        for measurement in self.measurements.values():
            measurement.check(self.model, self.data)
        before = len(read_notes(self.folder))
        for measurement in self.measurements.values():
            values |= measurement.attempt(self.model, self.data, self.folder) or {}
        about = {"checkpoint": str(self.checkpoint), "counters": self.model.counters.axes()}
        write_json(self.folder / "evaluation.json", about | {"values": values})
        MeasurementFailed.check(read_notes(self.folder)[before:], values)
        return values

    @property
    def _objects(self) -> Objects:
        if self._built is None:
            self._built = self._load()
        return self._built

    def _load(self) -> Objects:
        saved = load_checkpoint(self.checkpoint)
        # Who opens a run in the middle of their own work goes on with their own random numbers.
        with rebuilding(self.folder), isolated_rng(self.config["seed"]):
            model, data, callbacks = build(self.config)
            weights = model.weights_in(saved)
        check_recorded(self.folder, self.config, data)
        try:
            model.load_state_dict(weights)
        except (RuntimeError, TypeError) as error:
            first = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{self.checkpoint} does not fit the run's configuration ({first}); "
                "leave out overrides that change the networks"
            ) from error
        model.counters.load_state_dict(saved["flexgen"]["counters"])
        device = self.config["trainer"]["accelerator"]
        on_gpu = device in ("gpu", "cuda", "auto") and torch.cuda.is_available()
        model.to("cuda" if on_gpu else "cpu")
        return model, data, callbacks
