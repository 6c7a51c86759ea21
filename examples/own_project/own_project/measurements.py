"""A measurement of one's own: values by name, logged at its steps."""

from pathlib import Path
from typing import Any

import torch

from flexgen.callbacks import Measurement


class Copies(Measurement):
    """Whether samples are copies of training data.

    Logged: `copies/ratio`, the mean distance of a sample to its nearest training datum over that of
    a held-out datum to its own. Far below 1 the model copies; above 1 its samples are off the data.

    Args:
        n: samples.
        split: which part of the data is held out.
        **schedule: see :class:`flexgen.callbacks.Measurement`.
    """

    needs = ("samples",)

    def __init__(self, *, n: int = 200, split: str = "validation", **schedule: Any) -> None:
        super().__init__(**schedule)
        self.n, self.split = n, split

    def measure(self, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        train, held_out = (data.split(part)[0].flatten(1) for part in ("train", self.split))
        samples = model.sample(self.n).cpu().flatten(1)
        nearest = [torch.cdist(x, train).amin(1).mean() for x in (samples, held_out)]
        return {"copies/ratio": float(nearest[0] / nearest[1])}
