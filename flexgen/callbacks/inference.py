"""How well a model's own encoder inverts its decoder, and whether its codes follow the prior."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen.callbacks.figures import image_path
from flexgen.callbacks.measurement import Measurement, agreement, by_level, energy_distance
from flexgen.checks import check_integer
from flexgen.codes import context_of
from flexgen.drawing import draw_pairs
from flexgen.models import Latent
from flexgen.priors import base_codes

_PICTURED = 40


class InferenceScore(Measurement):
    """Codes of held-out data by the model's own encoder: their reconstructions, and their PAG.

    Logged: `posterior/error`, the mean ½‖x − G(z)‖² of z drawn from q(z|x), and of as many samples
    of the model itself `own/posterior_error`; `posterior/energy`, the energy distance of the codes
    to draws of the prior; and, where the prior is a normal or an invertible map of one,
    `posterior/pag` of the codes in its base space with the ends of its interval, and the control
    `own/posterior_pag` of the model's own samples. Of data and codes of one number it logs
    `posterior/correlation` too, Pearson's of x and z without its sign, which is 1 where each
    determines the other linearly and 0 where they are independent.

    Under a prior of levels `posterior/pag_level1` and so on are of the noise of each level, given
    those above, and `posterior/error_level2` is the error of data made from levels 2 and up alone,
    the ones below at the means that the prior gives them; pictured in
    `images/reconstructions_level2`.

    Args:
        n: data, at most what the split holds.
        split: which part of the data.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Source: reconstructions given z₁ and z₂, and given z₂ alone, are Belghazi et al., "Hierarchical
    adversarially learned inference", 2018, figure 2. Departure: theirs given z₂ draw z₁.
    """

    needs = ("encoder", "decoder")
    split: str

    def __init__(self, *, n: int = 1000, split: str = "validation", **schedule: Any) -> None:
        super().__init__(**schedule)
        self.n, self.split = check_integer("n", n, 2), split

    @torch.no_grad()
    def measure(self, model: Latent, data: Any, run_dir: Path) -> dict[str, float]:
        x, label = data.split(self.split, min(self.n, data.size(self.split)), self.seed)
        x, context = x.to(model.device), context_of(model, label)
        with model.evaluating():
            z = _codes(model, x, context)
            prior_draws = model.prior.draw(len(x), context)
            own = model.decode(prior_draws, context)
            of_own = _codes(model, own, context)
            values = {
                "posterior/error": _error(x, model.decode(z, context)),
                "own/posterior_error": _error(own, model.decode(of_own, context)),
                "posterior/energy": energy_distance(prior_draws, z),
            }
            if x[0].numel() == z.shape[1] == 1:
                pair = torch.cat([x.flatten(1), z], 1).double()
                values["posterior/correlation"] = abs(float(torch.corrcoef(pair.mT)[0, 1]))
            for name, codes in (("posterior/pag", z), ("own/posterior_pag", of_own)):
                base = base_codes(model.prior, codes)
                if base is not None and len(base) > base.shape[1]:
                    values |= agreement(name, base, seed=self.seed)
                    if name == "posterior/pag":
                        values |= by_level(name, base, model.prior.levels)
            for level, above in _from_above(model, z):
                x_hat = model.decode(above, context)
                values[f"posterior/error_level{level}"] = _error(x, x_hat)
                if x.ndim == 4:
                    path = image_path(run_dir, f"reconstructions_level{level}", model)
                    draw_pairs(x[:_PICTURED], x_hat[:_PICTURED], data.range, path)
        return values


def _codes(model: Latent, x: Tensor, context: Tensor | None) -> Tensor:
    z = model.encode(x, context)
    assert z is not None
    return z


def _error(x: Tensor, x_hat: Tensor) -> float:
    """The mean over data of half the squared error."""
    return float(0.5 * (x - x_hat).double().square().flatten(1).sum(1).mean())


def _from_above(model: Latent, z: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Of each level but the lowest, codes that keep it and what is above, the rest at its means."""
    space, levels = model.prior.base_space(), model.prior.levels
    if space.from_code is None:
        return
    eps = space.from_code(z)
    for level in range(1, len(levels)):
        above = eps.clone()
        above[:, : sum(levels[:level])] = 0
        yield level + 1, space.to_code(above)
