"""Base priors tilted by a network of their own: LARS, noise-contrastive priors, energies."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from flexgen.checks import (
    check_integer,
    check_not_negative,
    check_one_of,
    check_positive,
    check_sizes,
)
from flexgen.contracts import Cost, Draws, Prior, Report
from flexgen.distributions import Shape, Vectors, drawn
from flexgen.networks.layers import dense
from flexgen.priors.critic_sampling import Langevin
from flexgen.priors.fitting import maximise_likelihood
from flexgen.priors.gaussian import check_codes
from flexgen.priors.reweighted import Reweighted, Weighted
from flexgen.priors.staged import as_prior

# Of the draws that Z is a mean over; the global generators are left as they are.
_SEED = 0
_PART = 4096


class TiltedDistribution(Vectors):
    """What a :class:`Tilted` prior is now: its draws are chosen, so they pass no gradient on."""

    has_rsample = False

    def __init__(self, prior: "Tilted") -> None:
        self.prior = prior
        super().__init__((), prior.latent_dim)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        z = self.prior.chosen(math.prod(sample_shape))
        return z.view(*sample_shape, *self._event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.prior.log_density(value, self.prior.log_normaliser()[0])


class Tilted(Prior):
    r"""p(z) = π(z) t(z) / Z: a base prior π, and a network that says where there is more of it.

    Z = E t(z) over π is a mean over `num_samples` draws, the same ones each time, taken anew when
    the weights have changed. A fit first fits the base, if that learns, then the network alone; its
    report has `log_z_error` too, the standard error of log Z, and so of every log-density. While
    weights learn by likelihood, Z is a mean over `train_samples` fresh draws, with gradient.

    Args:
        base: π, a prior with a density.
        hidden_features: width of each hidden layer of the network, which standardises codes.
        num_samples: draws of π that Z is a mean over.
        train_samples: as many in a training step.
        steps: optimizer steps of a fit, at most.
        epochs: passes over the codes, at most: after more of a few codes the network knows them by
            heart before `lr` has fallen.
        batch_size: codes a step.
        lr: step size of its AdamW.
        patience: looks at held-out codes, 40 in all, without an improvement after which it ends.
        anneal: whether `lr` falls to 0 as a cosine.
        weight_decay: of AdamW. A network that is too sure has high values where π has no draws to
            speak of: Z is then a mean with a few draws in it, and `log_z_error` too small.

    Raises:
        ValueError: for a base without a density, or sizes out of range.
    """

    learns = True
    loc: Tensor
    scale: Tensor
    _sampler: tuple[Reweighted]  # in a tuple: the base is this prior's own, and saved once

    def __init__(
        self, base: nn.Module, *, hidden_features: Sequence[int] = (100, 100),
        num_samples: int = 16384, train_samples: int = 4096, steps: int = 800,
        epochs: int = 40, batch_size: int = 500, lr: float = 1e-2, patience: int = 40,
        anneal: bool = True, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        base = as_prior(base)
        if not base.has_log_prob or not base.normalised:
            raise ValueError(
                f"`base` must have a density, got {type(base).__name__}, which has none; set "
                "`prior@prior.base=normal`, realnvp or mixture"
            )
        self.base, self.latent_dim = base, base.latent_dim
        self.log_prob_cost: Cost = base.log_prob_cost
        self.num_samples = check_integer("num_samples", num_samples, 2)
        self.train_samples = check_integer("train_samples", train_samples, 2)
        self.steps = check_integer("steps", steps)
        self.epochs = check_integer("epochs", epochs)
        self.how: Any = {
            "batch_size": check_integer("batch_size", batch_size), "lr": lr, "patience": patience,
            "anneal": anneal, "weight_decay": check_not_negative("weight_decay", weight_decay),
        }  # fmt: skip
        widths = [base.latent_dim, *check_sizes("hidden_features", hidden_features)]
        # The last without a bias, which Z takes away again.
        self.network = nn.Sequential(
            *dense(widths, None, "SiLU", 0.0), nn.Linear(widths[-1], 1, bias=False)
        )
        self.register_buffer("loc", torch.zeros(base.latent_dim))
        self.register_buffer("scale", torch.ones(base.latent_dim))
        self._normaliser: tuple[Tensor, tuple[Tensor, float]] | None = None
        self._draws: list[Tensor] = []

    @property
    def support(self) -> tuple[float, float] | None:  # type: ignore[override]
        return self.base.support

    def forward(self, context: Tensor | None = None) -> TiltedDistribution:
        return TiltedDistribution(self)

    def logit(self, z: Tensor) -> Tensor:
        """What the network says of codes `(*batch, d)`, `(*batch,)`."""
        found: Tensor = self.network((z - self.loc) / self.scale)
        return found.squeeze(-1)

    def log_tilt(self, z: Tensor) -> Tensor:
        """log t(z)."""
        return self.logit(z)

    def log_ratio(self, z: Tensor, log_z: Tensor) -> Tensor:
        """log (p(z) / π(z)), given log Z."""
        return self.log_tilt(z) - log_z

    def log_density(self, z: Tensor, log_z: Tensor) -> Tensor:
        """log p(z), given log Z."""
        log_prob: Tensor = self.base().log_prob(z)
        return log_prob + self.log_ratio(z, log_z)

    def log_mean_tilt(self, draws: Tensor) -> Tensor:
        """log Z by draws of π `(n, d)`."""
        return self.log_tilt(draws).logsumexp(0) - math.log(len(draws))

    def chosen(self, n: int) -> Tensor:
        """n draws: those of the base, as the sampler has them by the network's score."""
        (sampler,) = self._sampler
        sampler.bind(score=self.logit)
        z: Tensor = sampler().rsample((n,))
        self.statistics = sampler.statistics
        return z

    def log_normaliser(self) -> tuple[Tensor, float]:
        """log Z of the weights as they are, and its standard error."""
        # By their values: a fused optimizer leaves the tensors' versions as they are.
        state = torch.cat([each.detach().flatten() for each in self.state_dict().values()])
        if self._normaliser is None or not torch.equal(self._normaliser[0], state):
            parts = self._draws or self._draws_of_base()
            with torch.no_grad():
                log_t = torch.cat([self.log_tilt(part) for part in parts]).double()
                log_z = log_t.logsumexp(0) - math.log(len(log_t))
                error = (log_t - log_z).exp().std() / math.sqrt(len(log_t))
            self._normaliser = state, (log_z.to(self.loc), float(error))
        return self._normaliser[1]

    def _draws_of_base(self) -> list[Tensor]:
        """The draws of π that Z is a mean over, in parts that fit in a processor's cache."""
        cuda = [self.loc.device] if self.loc.is_cuda else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(_SEED)
            parts = torch.arange(self.num_samples).split(_PART)
            return [self.base.draw(len(part)) for part in parts]

    def annealed_log_normaliser(
        self, *, num_chains: int = 1000, num_temperatures: int = 200, step_size: float = 0.05,
        seed: int = 0,
    ) -> tuple[float, float]:  # fmt: skip
        r"""log Z by annealed importance sampling, and its standard error.

        .. math:: \hat Z = \frac{1}{n} Σ_i \prod_{k=1}^{K} t(z_{i,k-1})^{1/K}

        with z₀ from π, and z_k from z_{k−1} by a Langevin step of ε that keeps π t^{k/K}, by
        Metropolis' rule. Where few draws of π lie where t is high, it is known better by this than
        by draws alone; E of it is Z whatever K and ε are.

        Args:
            num_chains: n, at least 2.
            num_temperatures: K, at least 1.
            step_size: ε, above 0.
            seed: of the chains; the global generators are left as they are.

        Source: Neal, "Annealed importance sampling", 2001, eq. 11.
        """
        check_integer("num_chains", num_chains, 2)
        check_integer("num_temperatures", num_temperatures)
        check_positive("step_size", step_size, "set `step_size=0.05`")
        cuda = [self.loc.device] if self.loc.is_cuda else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            z = self.base.draw(num_chains)
            log_w = torch.zeros(num_chains, dtype=torch.float64, device=z.device)
            for k in range(1, num_temperatures + 1):
                with torch.no_grad():
                    log_w += self.log_tilt(z) / num_temperatures
                z = self._moved(z, k / num_temperatures, step_size)
        log_z = float(log_w.logsumexp(0)) - math.log(num_chains)
        return log_z, float((log_w - log_z).exp().std()) / math.sqrt(num_chains)

    def _moved(self, z: Tensor, power: float, eps: float) -> Tensor:
        """Codes `(n, d)` after one Langevin step, by Metropolis' rule, of density π t^power."""

        def climbed(z: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                log_p: Tensor = self.base().log_prob(z) + power * self.log_tilt(z)
                (slope,) = torch.autograd.grad(log_p.sum(), z)
            return log_p.detach(), slope

        log_p, slope = climbed(z)
        noise = torch.randn_like(z)
        to = z + eps / 2 * slope + math.sqrt(eps) * noise
        inside = torch.ones_like(log_p, dtype=torch.bool)
        if self.support is not None:  # a move through its wall is refused
            inside = (to == to.clamp(*self.support)).all(1)
            to = torch.where(inside[:, None], to, z)
        log_p_to, slope_to = climbed(to)
        back = z - to - eps / 2 * slope_to
        ratio = log_p_to - log_p + noise.square().sum(1) / 2 - back.square().sum(1) / (2 * eps)
        take = inside & (torch.rand_like(ratio).log() < ratio)
        return torch.where(take[:, None], to, z)

    def cross_entropy(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return -self().log_prob(z)
        return -self.log_density(z, self.log_mean_tilt(drawn(self.base(), (self.train_samples,))))

    def network_loss(self, z: Tensor) -> Tensor:
        """What a fit minimises over codes: it has the gradient of −log p(z) in the network."""
        return -self.log_ratio(z, self.log_mean_tilt(self.base.draw(self.train_samples))).mean()

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        check_codes(codes, self.latent_dim, at_least=2)
        if self.base.learns:
            self.base.fit(codes, draws=draws, seed=seed, progress=progress)
        self.loc.copy_(codes.mean(0))
        self.scale.copy_(codes.std(0, correction=0).clamp_min(1e-6))
        self._draws = self._draws_of_base()  # of a base that stays, for all looks at held-out codes
        try:
            report = maximise_likelihood(
                self, codes.detach().to(self.loc), draws=draws, seed=seed, progress=progress,
                steps=min(self.steps, math.ceil(self.epochs * len(codes) / self.how["batch_size"])),
                surrogate=self.network_loss, **self.how,
            )  # fmt: skip
        finally:
            self._draws = []
        return report | ({"log_z_error": self.log_normaliser()[1]} if self.normalised else {})

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_normaliser": None}


class LARS(Tilted):
    r"""Learned accept/reject sampling: draws of π, each accepted with a learned probability a(z).

    .. math:: p(z) = π(z) \Big( (1 - α)\, \frac{a(z)}{Z} + α \Big), \quad
        Z = E_π a(z), \quad α = (1 - Z)^{T - 1}

    After T − 1 refusals the next draw is taken as it is, so that a draw costs at most T passes and
    the density stays normalised.

    Args:
        base: π, a prior with a density; draws of it must be cheap.
        truncation: T, at least 1.
        **options: see :class:`Tilted`.

    Raises:
        ValueError: for a base without a density, or sizes out of range.

    Source: Bauer & Mnih, "Resampled priors for variational autoencoders", 2019, eq. 4 and 5 (a of
    two hidden layers of 100, T = 100). Departures: Z in training is a mean over fresh draws of π
    alone, not a running mean with the codes among them; SiLU in the place of tanh; a fit to codes
    leaves the base as it was fitted.
    """

    def __init__(self, base: nn.Module, *, truncation: int = 100, **options: Any) -> None:
        super().__init__(base, **options)
        self.truncation = check_integer("truncation", truncation)

    def log_tilt(self, z: Tensor) -> Tensor:
        return logsigmoid(self.logit(z))

    def log_ratio(self, z: Tensor, log_z: Tensor) -> Tensor:
        if self.truncation == 1:
            return 0 * self.log_tilt(z)
        log_alpha = (self.truncation - 1) * _log_rest(log_z)
        accepted = _log_rest(log_alpha) + self.log_tilt(z) - log_z
        return torch.logaddexp(accepted, log_alpha)

    def chosen(self, n: int) -> Tensor:
        base = self.base()
        z = drawn(base, (n,))
        pending = torch.arange(n, device=z.device)
        for _ in range(self.truncation - 1):
            with torch.no_grad():
                log_a = self.log_tilt(z[pending])
            pending = pending[torch.rand_like(log_a).log() >= log_a]
            if not len(pending):
                break
            z = z.index_copy(0, pending, drawn(base, (len(pending),)))
        return z


class NoiseContrastive(Tilted):
    r"""π times the ratio of densities that a classifier of codes against draws of π has learned.

    .. math:: p(z) = π(z) \frac{r(z)}{Z}, \quad r = \frac{D}{1 - D}, \quad
        \max_D E_q \log D(z) + E_π \log(1 - D(z))

    Draws are those of π, moved by adjusted Langevin chains of `chain_steps` ("langevin"), or taken
    from a pool of `presample` times as many in proportion to r ("resampling"): faster, and exact
    only as the pool grows, see `effective_sample_size` in its statistics. In training with a model
    all is learned by likelihood.

    Args:
        base: π, a prior with a density.
        sampling: "langevin" or "resampling".
        presample: codes in the pool for each that is drawn, at least 2.
        chain_steps: length of a chain.
        step_size: of a chain, see :class:`~flexgen.priors.Langevin`.
        **options: see :class:`Tilted`.

    Raises:
        ValueError: for a base without a density, sizes out of range, or another `sampling`.

    Source: Aneja, Schwing, Kautz & Vahdat, "A contrastive learning approach for training
    variational autoencoder priors", 2021, eq. 4 to 6, section 4.3 (resampling, and Langevin).
    """

    def __init__(
        self, base: nn.Module, *, sampling: str = "langevin", presample: float = 50.0,
        chain_steps: int = 100, step_size: float = 0.05, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(base, **options)
        check_one_of("sampling", sampling, ("langevin", "resampling"))
        chains = Langevin(self.base, steps=chain_steps, step_size=step_size)
        pool = Weighted(self.base, "ratio", presample=presample)
        self._sampler = (chains if sampling == "langevin" else pool,)

    def network_loss(self, z: Tensor) -> Tensor:
        """The classifier's."""
        real, drawn = self.logit(z), self.logit(self.base.draw(len(z)))
        return (softplus(-real) + softplus(drawn)).mean()


class LatentEnergy(Tilted):
    r"""π times exp(f(z)), learned by the draws of short chains: an energy-based model of codes.

    .. math:: p(z) ∝ π(z)\, e^{f(z)}, \quad
        ∇ (-\log p(z)) = -∇ (\log π(z) + f(z)) + E_{z' ∼ p} ∇ f(z')

    with z' from Langevin chains of `chain_steps` plain steps that start from draws of π. They are
    too short to reach p; what they reach is what is drawn. So the density counts as not normalised,
    and no likelihood is taken from it; that of held-out codes, by which a fit keeps its best
    weights, has Z as a mean over draws of π.

    Args:
        base: π, a prior with a density.
        chain_steps: length of a chain.
        step_size: of a chain, see :class:`~flexgen.priors.Langevin`.
        **options: see :class:`Tilted`.

    Raises:
        ValueError: for a base without a density, or sizes out of range.

    Source: Pang, Han, Nijkamp, Zhu & Wu, "Learning latent space energy-based prior model", 2020,
    eq. 7 and 10 (60 steps of 0.16 = 0.4²). Departure: in a fit codes are given; there is no
    chain of the posterior.
    """

    normalised = False

    def __init__(
        self, base: nn.Module, *, chain_steps: int = 60, step_size: float = 0.16, **options: Any
    ) -> None:
        super().__init__(base, **options)
        chains = Langevin(self.base, steps=chain_steps, step_size=step_size, metropolis=False)
        self._sampler = (chains,)

    def cross_entropy(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return super().cross_entropy(z)
        return -self.log_density(z, self._own(z))

    def network_loss(self, z: Tensor) -> Tensor:
        return -self.log_ratio(z, self._own(z)).mean()

    def _own(self, z: Tensor) -> Tensor:
        """The mean of f over as many chains: its gradient is that of log Z."""
        return self.logit(self.chosen(len(z.flatten(0, -2))).detach()).mean()


def _log_rest(log_p: Tensor) -> Tensor:
    """log(1 − p), of p that may round to 1."""
    return torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
