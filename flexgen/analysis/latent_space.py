"""What the latent space of a run holds between images, and between classes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import check_one_of
from flexgen.codes import base_space, context_of, encoder_codes, reverse_data, with_start
from flexgen.contracts import in_context
from flexgen.priors.interpolation import linear, slerp
from flexgen.runs.run import Run

PATHS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"slerp": slerp, "linear": linear}

_SPLIT = "validation"
_MOST_CLASSES = 10  # a picture has a row and a column for each


class LatentSpace:
    """Codes of held-out images, and the images of other codes found from them.

    With a prior that is a map, a pushforward or a flow, it is the space of the prior under it. The
    codes are found by "reversal", or are those of the model's own "encoder". The options are of
    :func:`flexgen.codes.reverse_data`; the seed says which images, too.

    Raises:
        ValueError: for codes of another kind, or of an encoder where there is none.
    """

    def __init__(
        self, run: Run, options: dict[str, Any], seed: int, codes: str = "reversal"
    ) -> None:
        check_one_of("codes", codes, ("reversal", "encoder"))
        self.by_encoder = codes == "encoder"
        self.model, self.data = run.latent, run.data
        self.generator, self.prior = base_space(run.latent)
        self.options, self.seed = {**options, "seed": seed}, seed

    def interpolate(self, path: str, *, pairs: int, frames: int) -> dict[str, Tensor]:
        """Paths, "slerp" or "linear", between the codes of held-out images, two by two.

        Each has so many frames, both ends among them.

        Returns:
            Codes `z (pairs, frames, d)`, their data `x (pairs, frames, *shape)`; of the ends the
            data themselves, `real (pairs, 2, *shape)`, which they are of the split, `index
            (pairs, 2)`, and the `loss (pairs, 2)` of their codes.

        Raises:
            ValueError: if there are too few images, or the path could leave the prior's support.
        """
        support = self.prior.support
        if path == "slerp" and support is not None:
            raise ValueError(
                f"`interpolate=slerp` is for a normal prior, it may leave the box {support} of the "
                "run's; set `interpolate=linear`"
            )
        if 2 * pairs > (size := self.data.size(_SPLIT)):
            raise ValueError(
                f"`pairs` must be at most {size // 2}, half of the {size} held-out examples, got "
                f"{pairs}"
            )
        x, label = self.data.split(_SPLIT, 2 * pairs, self.seed)
        index = self.data.indices(_SPLIT, 2 * pairs, self.seed)
        context = context_of(self.model, label)
        z, loss = self._codes(x, index, context)
        ends = z.unflatten(0, (pairs, 2))
        steps = torch.linspace(0, 1, frames, device=ends.device)
        z = PATHS[path](ends[:, 0], ends[:, 1], steps)
        of_ends = {"real": x, "index": index, "loss": loss}
        tensors = {name: value.unflatten(0, (pairs, 2)) for name, value in of_ends.items()}
        # In a conditional model a path is of one class, that of its first end.
        first = None if context is None else context[::2, None].expand(-1, frames)
        return {"z": z, "x": self._generate(z, first), **tensors}

    def class_arithmetic(self, per_class: int) -> dict[str, Tensor]:
        """Mean codes of classes, and codes moved from class to class by their differences.

        Of each class one image more is reversed than is averaged. Its code z becomes
        z − mean of its own class + mean of another, clipped to a bounded prior's support.

        Returns:
            The `classes (k,)`, the ten first at most; the images' codes `z (k, 1 + per_class, d)`,
            the `loss` of each and which it is of the split, `index`, the one more first; mean codes
            `z_mean (k, d)`, their data `x_mean (k, *shape)`, and beside them `real_mean (k,
            *shape)`, the mean of the images; of the one more `real (k, *shape)` and the data of its
            code `x (k, *shape)`; and moved from class i to class j codes `z_moved (k, k, d)` and
            their data `x_moved (k, k, *shape)`.

        Raises:
            ValueError: for data without classes, or that are not images, or a class with too few.

        Source: Radford, Metz, Chintala, "Unsupervised representation learning with deep
        convolutional generative adversarial networks", 2016, section 6.3.2, who average three
        draws that they chose by eye; here the codes are of real images.
        """
        if len(self.data.shape) != 3 or not self.data.num_classes:
            raise ValueError(
                f"`arithmetic` is for images with classes, which {self.data.name} has not; "
                "`interpolate=linear` needs neither"
            )
        size = self.data.size(_SPLIT)
        x, label = self.data.split(_SPLIT, size, self.seed)
        classes, counts = label.unique(return_counts=True)
        classes, counts = classes[:_MOST_CLASSES], counts[:_MOST_CLASSES]
        if (fewest := int(counts.min())) <= per_class:
            raise ValueError(
                f"`per_class` must be at most {fewest - 1}, one less than the held-out images of "
                f"class {int(classes[counts.argmin()])}, got {per_class}"
            )
        shape = len(classes), 1 + per_class
        chosen = torch.cat([(label == c).nonzero().flatten()[: 1 + per_class] for c in classes])
        index = self.data.indices(_SPLIT, size, self.seed)[chosen]
        context = context_of(self.model, label[chosen])
        z, loss = self._codes(x[chosen], index, context)
        z, real = z.unflatten(0, shape), x[chosen].unflatten(0, shape)
        z_mean = z[:, 1:].mean(1)
        z_moved = z[:, :1] - z_mean.unsqueeze(1) + z_mean
        if (support := self.prior.support) is not None:
            z_moved = z_moved.clamp(*support)
        # In a conditional model a code moved to a class is decoded as of that class.
        own = context_of(self.model, classes)
        to = None if own is None else own.expand(len(classes), -1)
        return {
            "classes": classes,
            "z": z, "loss": loss.view(shape), "index": index.view(shape),
            "z_mean": z_mean, "x_mean": self._generate(z_mean, own),
            "real_mean": real[:, 1:].mean(1),
            "x": self._generate(z[:, 0], own), "real": real[:, 0],
            "z_moved": z_moved, "x_moved": self._generate(z_moved, to),
        }  # fmt: skip

    def _codes(self, x: Tensor, index: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes of data `(n, d)`, and their losses `(n,)`: of an encoder half the squared error."""
        x, in_base = x.to(self.model.device), self.prior is not self.model.prior.current
        if self.by_encoder:
            z = encoder_codes(self.model, x, context, seed=self.seed, base=in_base)
            return z, 0.5 * (x - self._generate(z, context)).square().flatten(1).sum(1)
        options = with_start(self.model, x, context, self.options, base=in_base)
        with self.model.evaluating():
            found = reverse_data(
                self.generator, self.prior, x, self.data.range, **options, index=index,
                context=context,
            )  # fmt: skip
        return found.z, found.loss

    def _generate(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Data `(…, *shape)` of codes `(…, d)` in their contexts `(…)`."""
        rows = torch.arange(z[..., 0].numel(), device=z.device).split(1000)
        codes, labels = z.flatten(0, -2), None if context is None else context.flatten()
        with self.model.evaluating(), torch.no_grad():
            made = [
                in_context(self.generator, codes[r], None if labels is None else labels[r]).float()
                for r in rows
            ]
        return torch.cat(made).unflatten(0, z.shape[:-1])
