"""A prior for each class."""

import copy
import math

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer
from flexgen.contracts import Draws, Prior, Report
from flexgen.distributions import Shape, Vectors, drawn
from flexgen.priors.staged import as_prior


class PerClassDistribution(Vectors):
    """p(z|y) of each label of a batch; of no labels, the mixture Σ_y p(y) p(z|y).

    Args:
        prior: has the distribution of each class, and p(y).
        labels: y, `(n,)`; None: the mixture.
    """

    def __init__(self, prior: "PerClass", labels: Tensor | None) -> None:
        self.prior, self.labels = prior, labels
        super().__init__(() if labels is None else labels.shape, prior.latent_dim)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        shape = (*sample_shape, *self._batch_shape)
        weights = self.prior.weights
        if self.labels is not None:
            labels = self.labels.expand(shape).flatten()
        else:
            labels = torch.multinomial(weights, math.prod(shape), replacement=True)
        z = weights.new_empty(len(labels), self.prior.latent_dim)
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero().squeeze(1)
            z = z.index_copy(0, rows, drawn(self.prior.of(label)(), (len(rows),)))
        return z.view(*shape, *self._event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        each = torch.stack([prior().log_prob(value) for prior in self.prior.each()])
        if self.labels is None:
            log_weights = self.prior.weights.log().view(-1, *(1,) * (each.ndim - 1))
            return (each + log_weights).logsumexp(0)
        return each.gather(0, self.labels.expand(each.shape[1:])[None])[0]


class PerClass(Prior):
    r"""p(z|y): a copy of one prior for each class y, each fitted to the codes of its class.

    Without a context it is the mixture $\sum_y p(y)\, p(z|y)$, with p(y) the classes' shares in the
    codes of the fit, and equal before it. A fit wants the class of each code as its context, and
    enough codes of each class for the base's own fit; it reports the means of what those say,
    weighted by the classes' shares.

    Args:
        base: any prior; each class starts with a copy of it.
        num_classes: at least 1.

    Raises:
        ValueError: for no classes; in a fit, without labels or for a class without codes.
    """

    takes_context = True
    weights: Tensor

    def __init__(self, base: nn.Module, num_classes: int) -> None:
        super().__init__()
        remedy = "a prior for each class is for a conditional model: set `conditional=true`"
        check_integer("num_classes", num_classes, 1, remedy)
        base = as_prior(base)
        self.latent_dim, self.learns = base.latent_dim, base.learns
        self.log_prob_cost, self.normalised = base.log_prob_cost, base.normalised
        self.support, self.num_values = base.support, base.num_values
        self.classes = nn.ModuleList(copy.deepcopy(base) for _ in range(num_classes))
        self.register_buffer("weights", torch.full((num_classes,), 1 / num_classes))

    def each(self) -> list[Prior]:
        """The prior of each class, in order."""
        return self._parts()

    def of(self, label: int) -> Prior:
        """The prior of one class."""
        return self.each()[label]

    def forward(self, context: Tensor | None = None) -> PerClassDistribution:
        return PerClassDistribution(self, context)

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        if not self.learns:
            return super()._fit(codes, context, draws, seed, progress)
        if context is None:
            raise ValueError(
                "a prior for each class is fitted to codes with labels, got codes alone; refit a "
                "run with `conditional=true`"
            )
        counts = context.bincount(minlength=len(self.classes))
        if not counts.all():
            raise ValueError(
                f"every class must have codes, got none of class {int(counts.argmin())}; reverse "
                "more images"
            )
        found = [
            prior.fit(codes[context == label], seed=seed, progress=progress)
            for label, prior in enumerate(self.each())
        ]
        self.weights.copy_(counts / counts.sum())
        shares = self.weights.tolist()
        return {
            name: sum(share * each[name] for share, each in zip(shares, found, strict=True))
            for name in found[0]
        }
