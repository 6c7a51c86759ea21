"""Pictures of samples and of codes, on a schedule."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen.callbacks.measurement import ALONE, Measurement, value_of
from flexgen.checks import check_integer
from flexgen.codes import base_space, codes_path, load_codes
from flexgen.contracts import in_context
from flexgen.drawing import draw_figure, draw_images, draw_samples
from flexgen.metrics import ClusterRatio
from flexgen.training import Loop


def image_path(run_dir: Path, kind: str, model: Loop) -> Path:
    """Where a run keeps its pictures of a kind, at the model's step."""
    return run_dir / "images" / kind / f"step={model.counters.generator_steps:08d}.png"


class SampleGrid(Measurement):
    """Draws samples of the same noise each time: a grid of images, or points in the plane.

    Args:
        n: how many samples; toys draw 20 times as many points. Of a conditional model each column
            of the grid is a class, in order.
        draws: whether to draw images from p(x|z) too, at the codes of those means; of a VAE.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.
    """

    def __init__(self, *, n: int = 64, draws: bool = False, **schedule: Any) -> None:
        super().__init__(**schedule)
        self.n, self.draws = check_integer("n", n), draws
        if draws:
            self.needs = ("likelihood",)

    @torch.no_grad()
    def measure(self, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        path = image_path(run_dir, "samples", model)
        if len(data.shape) == 3:
            columns = model.num_classes
            n = self.n if columns is None else max(self.n // columns, 1) * columns
            with model.evaluating():
                if not self.draws:
                    draw_samples(model.sample(n), data.range, path, columns=columns)
                    return {}
                context = model.in_turn(n)
                z = model.prior.draw(n, context)
                draw_samples(model.decode(z, context), data.range, path, columns=columns)
                x = in_context(model.likelihood, z, context).sample()
                draw_samples(x, data.range, image_path(run_dir, "draws", model), columns=columns)
        elif tuple(data.shape) == (2,):
            n = 20 * self.n
            real, _ = data.split("validation", None, self.seed)
            draw_samples(model.sample(n), None, path, real=real[:n])
        return {}


Saved = dict[str, Tensor]


class _OfCodes(Measurement):
    """Pictures the codes that a :class:`ReversalScore` before it saved at the same step."""

    needs = ("prior",)

    def measure(self, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        path = codes_path(run_dir, model.counters.generator_steps)
        return self.picture(load_codes(path), model, data, run_dir) if path.is_file() else {}

    def picture(self, codes: Saved, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        raise NotImplementedError


class CodeMap(_OfCodes):
    """A t-SNE map of the codes, coloured by class.

    Logged: `codes/cluster_ratio` in latent space and `codes/cluster_ratio_tsne` in the plane,
    the ratio of between-cluster to within-cluster scatter.

    Args:
        perplexity: of t-SNE.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Source: Kilcher et al., figure 2.
    """

    def __init__(self, *, perplexity: float = 30.0, **schedule: Any) -> None:
        super().__init__(**schedule)
        self.perplexity = perplexity

    def picture(self, codes: Saved, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        from sklearn.manifold import TSNE

        z, label = codes["z"].double(), codes.get("label")
        tsne = TSNE(perplexity=min(self.perplexity, (len(z) - 1) / 3), random_state=self.seed)
        plane = torch.from_numpy(tsne.fit_transform(z.numpy())).double()

        def scatter(figure: Any) -> None:
            axes = figure.add_subplot(xticks=[], yticks=[])
            colours = None if label is None else label.numpy()
            points = axes.scatter(*plane.numpy().T, s=8, c=colours, cmap="tab10")
            if label is not None and data.num_classes <= 10:
                axes.legend(*points.legend_elements(), fontsize=8, loc="upper right")

        draw_figure(scatter, image_path(run_dir, "code_map", model), size=(5.5, 5.0))
        if label is None:
            return {}
        spaces = {"codes/cluster_ratio": z, "codes/cluster_ratio_tsne": plane}
        ratio = partial(ClusterRatio, data.num_classes, **ALONE)
        return {name: value_of(ratio(), where, label) for name, where in spaces.items()}


class Disagreement(_OfCodes):
    """The samples that the prior finds likely and the data do not.

    Of `draws` codes from the prior it draws the `keep` whose mean squared distance to the codes of
    data, ‖z − zᵢ‖² averaged over i, is largest. (That mean is ‖z − z̄‖² plus a constant, so these
    are the draws farthest from the codes' mean.)

    Logged: `disagreement/distance`, the mean distance of those kept over that of all draws.

    Args:
        draws: codes drawn.
        keep: how many of them to picture.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Source: Kilcher et al., section 4.2 and figure 3: 20 of 1,000.
    """

    needs = ("decoder",)

    def __init__(self, *, draws: int = 1000, keep: int = 20, **schedule: Any) -> None:
        super().__init__(**schedule)
        if not 1 <= keep <= draws:
            raise ValueError(f"`keep` must be in [1, draws={draws}], got {keep}")
        self.draws, self.keep = draws, keep

    def picture(self, codes: Saved, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        generator, prior = base_space(model)
        z = codes["z"].to(model.device)
        context = model.in_turn(self.draws)
        drawn = prior.draw(self.draws, context)
        distance = torch.cdist(drawn.double(), z.double()).square().mean(1)
        worst = distance.topk(self.keep)
        if len(data.shape) == 3:
            with model.evaluating(), torch.no_grad():
                chosen = None if context is None else context[worst.indices]
                x = in_context(generator, drawn[worst.indices], chosen).float()
            draw_images(x, data.range, image_path(run_dir, "disagreement", model), columns=10)
        return {"disagreement/distance": float(worst.values.mean() / distance.mean())}


class Spectrum(_OfCodes):
    """The singular values of the codes over √n, beside those of draws from the prior.

    Source: Kilcher et al., figure 8.
    """

    needs = ("decoder",)

    def picture(self, codes: Saved, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        n = len(codes["z"])
        _, prior = base_space(model)
        draws = prior.draw(20 * n, model.in_turn(20 * n)).double().cpu().unflatten(0, (20, n))
        of_prior = torch.linalg.svdvals(draws) / n**0.5
        of_codes = codes["singular_values"] / n**0.5
        rank = range(1, len(of_codes) + 1)

        def plot(figure: Any) -> None:
            axes = figure.add_subplot(xlabel="index", ylabel="singular value / √n")
            axes.plot(rank, of_codes, "o-", color="#D55E00", ms=4, label="codes of held-out data")
            axes.plot(rank, of_prior.mean(0), color="#0072B2", label="draws from the prior")
            low, high = of_prior.amin(0), of_prior.amax(0)
            axes.fill_between(rank, low, high, color="#0072B2", alpha=0.25, lw=0)
            axes.set_ylim(bottom=0)
            axes.legend()

        draw_figure(plot, image_path(run_dir, "spectrum", model))
        return {}
