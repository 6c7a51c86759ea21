"""Pictures of what a VAE's posterior, or a VQ-VAE's encoder, makes of held-out data."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen.callbacks.figures import image_path
from flexgen.callbacks.measurement import Measurement
from flexgen.checks import check_integer
from flexgen.codes import context_of
from flexgen.drawing import draw_figure, draw_pairs
from flexgen.priors import base_codes

_DRAWS = 5000
_Seen = tuple[Tensor, Tensor, Tensor | None]  # data, their codes, their labels


class _OfPosterior(Measurement):
    """Pictures codes of held-out data, for each a draw from q(z|x), or the encoder's one code.

    Args:
        n: data, at least 2 and at most what the split holds.
        split: which part of the data.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.
    """

    needs = ("encoder",)

    def __init__(self, *, n: int, split: str = "validation", **schedule: Any) -> None:
        super().__init__(**schedule)
        self.n, self.split = check_integer("n", n, 2), split

    def measure(self, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        x, label = data.split(self.split, min(self.n, data.size(self.split)), self.seed)
        z = model.encode(x.to(model.device), context_of(model, label))
        self.picture(model, data, (x, z, label), run_dir)
        return {}

    def picture(self, model: Any, data: Any, seen: _Seen, run_dir: Path) -> None:
        raise NotImplementedError


class Reconstructions(_OfPosterior):
    """Held-out images, and to the right of each E[x|z] of a code z drawn from its posterior.

    Args:
        n: images.
        **options: see :class:`~flexgen.callbacks.Measurement`, and `split`.
    """

    def __init__(self, *, n: int = 40, **options: Any) -> None:
        super().__init__(n=n, **options)

    def picture(self, model: Any, data: Any, seen: _Seen, run_dir: Path) -> None:
        x, z, label = seen
        if x.ndim == 4:
            path = image_path(run_dir, "reconstructions", model)
            draw_pairs(x, model.decode(z, context_of(model, label)), data.range, path)


class AggregatePosterior(_OfPosterior):
    """The aggregate posterior over the prior: codes of held-out data over draws from p(z).

    A scatter plot in Z and, where the prior is a flow, one in its base space, where N(0, I) stands.
    Both show the plane of the codes' two largest principal components; codes of one dimension have
    none, and no picture. Of codes that are names it is of the vectors that they name, flattened.

    Args:
        n: data.
        **options: see :class:`~flexgen.callbacks.Measurement`, and `split`.

    Source: Huang et al., "Learnable explicit density", 2017, figure 2, of data and not of codes.
    """

    def __init__(self, *, n: int = 1000, **options: Any) -> None:
        super().__init__(n=n, **options)

    @torch.no_grad()
    def picture(self, model: Any, data: Any, seen: _Seen, run_dir: Path) -> None:
        _, z, label = seen
        if z.shape[1] < 2:
            return
        with model.evaluating():
            draws = model.prior.draw(_DRAWS, model.in_turn(_DRAWS))
            pair = model.points(z), model.points(draws)
            spaces = {"codes and draws from the prior, Z": pair}
            base = base_codes(model.prior, z)
        if base is not None and not torch.equal(base, z):
            normal = torch.randn(_DRAWS, z.shape[1], device=z.device)
            spaces["in the prior's base space, N(0, I)"] = (base, normal)

        def scatter(figure: Any) -> None:
            # Always room for two, so that the pictures of several runs have one scale.
            panels = figure.subplots(1, 2)
            for axes in panels[len(spaces) :]:
                axes.set_axis_off()
            for axes, (title, (codes, draws)) in zip(panels, spaces.items(), strict=False):
                on_plane = _principal_plane(codes)
                axes.scatter(*on_plane(draws), s=3, color="#D9D9D9", label="prior")
                points = axes.scatter(
                    *on_plane(codes), s=7, cmap="tab10",
                    c=None if label is None else label.cpu().numpy(), label="codes",
                )  # fmt: skip
                axes.set_title(title, fontsize=9)
                axes.set_aspect("equal", adjustable="datalim")
            if label is not None and data.num_classes <= 10:
                beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
                axes.legend(*points.legend_elements(), fontsize=7, **beside)

        path = image_path(run_dir, "aggregate_posterior", model)
        draw_figure(scatter, path, size=(8.0, 3.8))


def _principal_plane(codes: Tensor) -> Any:
    """The projection `(n, d)` to `(2, n)` on the plane in which the codes spread most."""
    centre = codes.mean(0)
    axes = torch.linalg.svd((codes - centre).double(), full_matrices=False)[2][:2]
    return lambda z: (axes @ (z - centre).double().mT).cpu().numpy()
