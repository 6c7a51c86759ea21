"""How likely held-out data are under a density."""

from pathlib import Path
from typing import Any

from flexgen.callbacks.likelihood import level_of
from flexgen.callbacks.measurement import Measurement
from flexgen.checks import check_integer
from flexgen.codes import context_of
from flexgen.files import write_tensors
from flexgen.models import DensityModel


class DensityScore(Measurement):
    """The exact negative log-likelihood of held-out data under a density.

    Logged, in nats per datum: `nll/samples`, with its standard error over data
    `nll/standard_error`, and, where data have probabilities, `nll/bits_per_dimension`; and
    `nll/train`, that of as many training data. Saved: `nll/step=….safetensors` with `nll (n,)`, of
    each datum, and `index (n,)`, which of the split it is.

    Args:
        n: data; None: the whole split. Early data of a set may be easier: quote n.
        split: which part of the data.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Raises:
        ValueError: if `n` is under 2.
    """

    needs = ("density",)
    split: str

    def __init__(self, *, n: int | None = None, split: str = "test", **schedule: Any) -> None:
        super().__init__(**schedule)
        self.n = n if n is None else check_integer("n", n, 2)
        self.split = split

    def measure(self, model: DensityModel, data: Any, run_dir: Path) -> dict[str, float]:
        size = data.size(self.split)
        which = self.split, min(self.n or size, size), self.seed
        x, label = data.split(*which)
        nll = -model.log_likelihood(x.to(model.device), context_of(model, label))
        path = run_dir / "nll" / f"step={model.counters.generator_steps:08d}.safetensors"
        write_tensors(path, {"nll": nll, "index": data.indices(*which)})
        values = level_of(nll, x[0].numel() if model.density.has_mass else None)
        x, label = data.split("train", min(len(x), data.size("train")), self.seed)
        train = -model.log_likelihood(x.to(model.device), context_of(model, label))
        return values | {"nll/train": float(train.double().mean())}
