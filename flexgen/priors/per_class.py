"""A prior for each class."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from flexgen.checks import check_integer
from flexgen.contracts import Prior
from flexgen.priors.staged import as_prior

__all__ = ["PerClass", "PerClassDistribution"]


class PerClassDistribution(Distribution):
    """p(z|y) of each label of a batch; of no labels, the mixture Σ_y p(y) p(z|y).

    Args:
        prior: has the distribution of each class, and p(y).
        labels: y, `(n,)`; None: the mixture.
    """

    has_rsample = True
    support = constraints.real_vector
    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)

    def __init__(self, prior: "PerClass", labels: Tensor | None) -> None:
        self.prior, self.labels = prior, labels
        rows = torch.Size() if labels is None else labels.shape
        super().__init__(rows, torch.Size((prior.latent_dim,)), validate_args=False)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        shape = (*sample_shape, *self._batch_shape)
        labels = self._labels(shape)
        z = self.prior.weights.new_empty(labels.numel(), self.prior.latent_dim)
        for label in labels.unique().tolist():
            rows = (labels.flatten() == label).nonzero().squeeze(1)
            z = z.index_copy(0, rows, self.prior.of(label)().rsample(torch.Size((len(rows),))))
        return z.view(*shape, *self._event_shape)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        each = torch.stack([prior().log_prob(value) for prior in self.prior.each()])
        if self.labels is None:
            log_weights = self.prior.weights.log().view(-1, *(1,) * (each.ndim - 1))
            return (each + log_weights).logsumexp(0)
        chosen = self.labels.expand(each.shape[1:])
        return each.gather(0, chosen[None])[0]

    def _labels(self, shape: tuple[int, ...]) -> Tensor:
        if self.labels is not None:
            return self.labels.expand(shape)
        n = int(torch.Size(shape).numel())
        return torch.multinomial(self.prior.weights, n, replacement=True).view(shape)


class PerClass(Prior):
    r"""p(z|y): a copy of one prior for each class y, each fitted to the codes of its class.

    Without a context it is the mixture $\sum_y p(y)\, p(z|y)$, with p(y) the classes' shares in the
    codes of the fit, and equal before it.

    Args:
        base: any prior; each class starts with a copy of it.
        num_classes: at least 1.

    Raises:
        ValueError: for no classes.
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
        self.support = base.support
        self.classes = nn.ModuleList(copy.deepcopy(base) for _ in range(num_classes))
        self.register_buffer("weights", torch.full((num_classes,), 1 / num_classes))

    def each(self) -> list[Prior]:
        """The prior of each class, in order."""
        return [self.of(label) for label in range(len(self.classes))]

    def of(self, label: int) -> Prior:
        """The prior of one class."""
        prior = self.classes[label]
        assert isinstance(prior, Prior)
        return prior

    def forward(self, context: Tensor | None = None) -> PerClassDistribution:
        return PerClassDistribution(self, context)

    def fit(
        self, codes: Tensor, *, context: Tensor | None = None, **options: Any
    ) -> dict[str, float]:
        """Fit the prior of each class to its codes.

        Args:
            codes: `(n, latent_dim)`, with enough of each class for the base's own fit.
            context: the class of each, `(n,)`.
            **options: of the base's fit.

        Returns:
            The means over the classes of what the fits report, weighted by the classes' shares.

        Raises:
            ValueError: without labels, for a class without codes, or as the base's fit does.
        """
        if not self.learns:
            return super().fit(codes, **options)
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
            prior.fit(codes[context == label], **options) for label, prior in enumerate(self.each())
        ]
        self.weights.copy_(counts / counts.sum())
        shares = self.weights.tolist()
        return {
            name: sum(share * each[name] for share, each in zip(shares, found, strict=True))
            for name in found[0]
        }

    def _parts(self) -> list[Prior]:
        return self.each()
