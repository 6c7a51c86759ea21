"""Flows as priors: RealNVP, MAF, and any other map of :mod:`flexgen.flows`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import Tensor

from flexgen.checks import check_integer, check_not_negative
from flexgen.contracts import BaseSpace, Draws, Prior, Report
from flexgen.distributions import covariance
from flexgen.flows import (
    ActNorm,
    Autoregressive,
    Chain,
    Coupling,
    FlowDistribution,
    Inverse,
    LocationScale,
    LULinear,
    Permutation,
    SplineCoupling,
    Transform,
)
from flexgen.priors.fitting import maximise_likelihood
from flexgen.priors.fixed import Normal
from flexgen.priors.gaussian import check_codes, covariance_factor


class FlowPrior(Prior):
    r"""z = μ + L f(ε), ε from N(0, I), with any map f.

    A fit sets μ and L to the codes' mean and covariance factor, then learns f by maximum
    likelihood: it starts as the Gaussian of the codes, and f learns what that Gaussian misses. In
    training, where f learns with the model, μ and L stay the identity. A fit takes more than d
    codes, and reports what :func:`~flexgen.priors.fitting.maximise_likelihood` does.

    Args:
        flow: f, without a context.
        steps: optimizer steps of a fit, at most.
        batch_size: codes a step.
        lr: step size of its Adam.
        patience: looks at held-out codes, 40 in all, without an improvement after which it ends.
        anneal: whether `lr` falls to 0 as a cosine; without, a lower `patience` saves time.
        weight_decay: c; AdamW's decay is c d/√n for n codes. It keeps f near the identity, and so
            the prior near its Gaussian, in coordinates that there is nothing to learn of: without,
            a flow learns few codes of many coordinates by heart.

    Raises:
        ValueError: for a map that needs a context or a negative decay; in a fit, for a map without
            density or parameters.
    """

    learns = True

    def __init__(
        self, flow: Transform, *, steps: int = 1000, batch_size: int = 500, lr: float = 3e-3,
        patience: int = 40, anneal: bool = True, weight_decay: float = 15.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if flow.context_features:
            raise ValueError(
                f"a prior has no context, got a flow with {flow.context_features} context "
                "features; build it with `context_features=0`"
            )
        self.latent_dim, self.log_prob_cost = flow.features, flow.inverse_cost
        self.transform = Chain([flow, LocationScale(flow.features)])
        self.how: Any = {
            "steps": steps, "batch_size": batch_size, "lr": lr, "patience": patience,
            "anneal": anneal,
        }  # fmt: skip
        self.weight_decay = check_not_negative("weight_decay", weight_decay)
        self.base: Prior = Normal(flow.features)

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        return FlowDistribution(self.base(), self.transform)

    def base_space(self) -> BaseSpace:
        """The space of ε, to which a flow's inverse leads back."""
        back = (lambda z: self.transform.inverse(z)[0]) if self.has_log_prob else None
        cost = self.transform.forward_cost
        return BaseSpace(self.base, lambda eps: self.transform(eps)[0], back, cost)

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        check_codes(codes, self.latent_dim, at_least=self.latent_dim + 1)
        if not self.has_log_prob:
            raise ValueError(
                f"a fit needs the density of codes, which {type(self.transform).__name__} lacks; "
                "use prior=realnvp"
            )
        if next(self.parameters(), None) is None:
            raise ValueError(
                "a fit needs a map with parameters, got one of 0 layers; set `prior.num_layers=8`, "
                "or use prior=gaussian for mean and covariance alone"
            )
        codes = codes.detach()
        frame = self.transform.transforms[-1]
        assert isinstance(frame, LocationScale)
        frame.factor.copy_(covariance_factor(covariance(codes, correction=0)))
        frame.loc.copy_(codes.double().mean(0))
        z = codes.to(frame.loc)
        self.transform.start(z)
        return maximise_likelihood(
            self,
            z,
            draws=draws,
            seed=seed,
            progress=progress,
            surrogate=self._surrogate,
            weight_decay=self.weight_decay * self.latent_dim / len(z) ** 0.5,
            **self.how,
        )

    _surrogate: Callable[[Tensor], Tensor] | None = None


class RealNVP(FlowPrior):
    """Affine couplings: draws and densities both take one pass.

    Args:
        latent_dim: d, at least 2.
        num_layers: how many couplings, at least 2; or 0, which is N(0, I) and not to be fitted.
        hidden_features: width of each hidden layer of their networks.
        mask: "random", "alternating" or "checkerboard".
        shape: `(channels, height, width)` of a code, for the checkerboard.
        volume_preserving: whether the couplings only shift.
        activation: of their networks: "ReLU", "ELU" or "Tanh".
        mixing: whether a learned matrix (:class:`~flexgen.flows.LULinear`) and an
            :class:`~flexgen.flows.ActNorm`, which a fit starts from its codes, stand before every
            two couplings, towards the base: for deep flows.
        fit: options of :class:`FlowPrior`.

    Raises:
        ValueError: as :class:`~flexgen.flows.Coupling` does; for mixing with an odd number.

    Source: Dinh et al., 2017; Huang et al., "Learnable explicit density", 2017, table 1 (one
    hidden layer of 100, 4 to 16 layers, random masks) for the defaults.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        num_layers: int = 8,
        hidden_features: Sequence[int] = (100,),
        mask: Literal["random", "alternating", "checkerboard"] = "random",
        shape: Sequence[int] | None = None,
        volume_preserving: bool = False,
        activation: str = "ReLU",
        mixing: bool = False,
        **fit: Any,
    ) -> None:
        def couplings(num: int) -> Transform:
            return Coupling(
                latent_dim, num_layers=num, hidden_features=hidden_features, mask=mask,
                shape=shape, volume_preserving=volume_preserving, activation=activation,
            )  # fmt: skip

        flow: Transform = Permutation(range(latent_dim))
        if num_layers and not mixing:
            flow = couplings(num_layers)
        elif num_layers:
            if num_layers % 2:
                raise ValueError(
                    f"`num_layers` must be even with `mixing`, which stands before every two, got "
                    f"{num_layers}; set `prior.num_layers={num_layers + 1}`"
                )
            flow = _mixed(couplings(2) for _ in range(num_layers // 2))
        super().__init__(flow, **fit)


class NSF(FlowPrior):
    """Spline couplings with mixing between: draws and densities both take one pass.

    Args:
        latent_dim: d, at least 2.
        num_layers: how many couplings, at least 1, an :class:`~flexgen.flows.ActNorm` and an
            :class:`~flexgen.flows.LULinear` with each.
        hidden_features: width of each hidden layer of their networks.
        bins: of each spline.
        bound: of whitened codes, beyond which a spline is the identity.
        fit: options of :class:`FlowPrior`.

    Raises:
        ValueError: as :class:`~flexgen.flows.SplineCoupling` does.

    Source: Durkan et al., "Neural spline flows", 2019 (couplings with LU layers between).
    Departures: an ActNorm with each; four bins and 32 units, for the time of a step.
    """

    def __init__(
        self, latent_dim: int, *, num_layers: int = 8, hidden_features: Sequence[int] = (32,),
        bins: int = 4, bound: float = 5.0, **fit: Any,
    ) -> None:  # fmt: skip
        check_integer("num_layers", num_layers, 1, "set `prior.num_layers=8`")
        splines = [
            SplineCoupling(latent_dim, hidden_features=hidden_features, bins=bins, bound=bound)
            for _ in range(num_layers)
        ]
        super().__init__(_mixed(splines), **fit)


def _mixed(layers: Iterable[Transform]) -> Chain:
    """Layers, each with a learned matrix and an ActNorm towards the base."""
    parts = ((LULinear(layer.features), ActNorm(layer.features), layer) for layer in layers)
    return Chain([part for triple in parts for part in triple])


class MAF(FlowPrior):
    """Masked autoregressive steps: densities take one pass, draws one step a coordinate.

    Args:
        latent_dim: d, at least 2.
        num_layers: how many steps.
        hidden_features: width of each hidden layer of their networks.
        order: of the coordinates: "reversed" after each step, "random" or "natural".
        activation: of their networks: "ReLU", "ELU" or "Tanh".
        fit: options of :class:`FlowPrior`.

    Raises:
        ValueError: as :class:`~flexgen.flows.Autoregressive` does.

    Source: Papamakarios, Pavlakou & Murray, 2017, table 1 (five steps) for the defaults.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        num_layers: int = 5,
        hidden_features: Sequence[int] = (100, 100),
        order: Literal["reversed", "random", "natural"] = "reversed",
        activation: str = "ReLU",
        **fit: Any,
    ) -> None:
        steps = Autoregressive(
            latent_dim, num_layers=num_layers, hidden_features=hidden_features, order=order,
            activation=activation,
        )  # fmt: skip
        super().__init__(Inverse(steps), **fit)
