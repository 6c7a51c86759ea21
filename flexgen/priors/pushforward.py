"""PGAN: the data-induced prior as the pushforward h#p(z') of a simple prior, learned by a GAN."""

import copy
from collections.abc import Callable

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen.checks import check_integer
from flexgen.contracts import BaseSpace, Cost, Draws, Prior, Report
from flexgen.distributions import Shape, Vectors, covariance
from flexgen.objectives import LSGAN, Objective, clip_weights, critic_loss
from flexgen.priors.gaussian import check_codes, covariance_factor, whitened
from flexgen.priors.staged import as_prior


class PushforwardDistribution(Vectors):
    """The distribution of h(z') for z' from a base distribution: it can be drawn from, no more."""

    def __init__(
        self, base: Distribution, transform: Callable[[Tensor], Tensor], latent_dim: int
    ) -> None:
        self.base, self.transform = base, transform
        super().__init__((), latent_dim)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        z = self.transform(self.base.rsample(sample_shape).flatten(0, -2))
        return z.view(*sample_shape, *self._event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError(
            "a pushforward prior has no density, its map is not invertible; "
            "use a flow such as `prior=zuko_nsf` where a log-likelihood is needed"
        )


class Pushforward(Prior):
    r"""h#p(z') with h(z') = μ + L (W z' + f(z')), learned as a GAN on codes ("PGAN").

    μ and L (Cholesky) are the mean and the covariance factor of the codes, W is linear and starts
    as the identity, f is `network`. With `skip` the map starts near the Gaussian fitted to the
    codes and learns what that Gaussian misses; it cannot start out with a collapsed rank, which a
    plain ReLU network does on codes. A fit takes more than latent_dim codes, and reports
    `condition`: the smallest over the largest eigenvalue of the covariance of h(z') after the game,
    relative to the codes' own (1: as full a rank as the codes; near 0: collapsed).

    Args:
        network: f, `(batch, base_dim)` to `(batch, latent_dim)`.
        base: the prior on z', of dimension base_dim, at least latent_dim (Kilcher et al.: the
            same or higher).
        critic: codes `(batch, latent_dim)` to logits `(batch,)`.
        objective: the game between them; None: least squares.
        steps: generator steps of the fit.
        critic_steps: critic steps for each of them.
        batch_size: codes a step.
        lr: step size of both Adam optimizers (betas 0.5, 0.9), decayed linearly to 0.
        ema_decay: decay of the average of f and W that is kept, in [0, 1).
        skip: whether the linear term W z' is there.
        match_moments: whether μ and L are set anew after the game, so that draws have the codes'
            mean and covariance; the game leaves them too narrow.

    Raises:
        ValueError: for sizes out of range or networks whose dimensions do not fit.

    Source: Kilcher et al., "Flexible prior distributions for deep generative models", section 3,
    figure 1 and appendix E. Departures: whitened codes, the linear term, Adam with a decaying step
    size and an average of the weights instead of RMSprop, least squares as the default game, and
    matched moments; as printed, h collapses in rank. On 1,257 codes of digits (d = 20, one seed)
    the game ended with 0.68 of their variance, at an energy distance to 440 held-out codes of
    0.066, farther than N(0, I) at 0.020; with matched moments it is -0.001.
    """

    log_prob_cost = Cost.ABSENT
    learns = True
    shift: Tensor
    factor: Tensor

    def __init__(
        self,
        network: nn.Module,
        base: nn.Module,
        critic: nn.Module,
        objective: Objective | None = None,
        *,
        steps: int = 4000,
        critic_steps: int = 1,
        batch_size: int = 100,
        lr: float = 2e-3,
        ema_decay: float = 0.995,
        skip: bool = True,
        match_moments: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("steps", steps), ("critic_steps", critic_steps)):
            check_integer(name, value, 1, f"set `prior.{name}`")
        if not 0 <= ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), got {ema_decay}")
        base = as_prior(base)
        base_dim = base.latent_dim
        with torch.no_grad():
            shape = copy.deepcopy(network).eval()(torch.zeros(2, base_dim)).shape
        if len(shape) != 2 or shape[1] > base_dim:
            raise ValueError(
                f"`network` must map z' ({base_dim},) to a code of at most as many dimensions, "
                f"got {tuple(shape[1:])}; raise `latent_dim` of the base prior"
            )
        self.latent_dim = int(shape[1])
        self.network, self.base, self.critic = network, base, critic
        self.objective = objective if objective is not None else LSGAN()
        self.steps, self.critic_steps, self.batch_size = steps, critic_steps, batch_size
        self.lr, self.ema_decay, self.match_moments = lr, ema_decay, match_moments
        self.linear = nn.Linear(base_dim, self.latent_dim, bias=False) if skip else None
        if self.linear is not None:
            nn.init.eye_(self.linear.weight)
        self.register_buffer("shift", torch.zeros(self.latent_dim))
        self.register_buffer("factor", torch.eye(self.latent_dim))
        # A prior is learned by its `fit` alone: the model that draws from it never trains it.
        self.requires_grad_(False)
        self.eval()

    def transform(self, z_base: Tensor) -> Tensor:
        """h(z'): `(batch, base_dim)` to codes `(batch, latent_dim)`."""
        return torch.addmm(self.shift, self._whitened(z_base), self.factor.mT)

    def forward(self, context: Tensor | None = None) -> PushforwardDistribution:
        return PushforwardDistribution(self.base(context), self.transform, self.latent_dim)

    def base_space(self) -> BaseSpace:
        """The space of z', which no inverse leads back to."""
        return BaseSpace(self.base, self.transform, None)

    def train(self, mode: bool = True) -> "Pushforward":
        """Stay in eval mode: a training model must not move the batch norms of its prior."""
        return super().train(False)

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        check_codes(codes, self.latent_dim, at_least=self.latent_dim + 1)
        codes = codes.detach().to(self.shift)
        with torch.random.fork_rng(devices=[codes.device] if codes.is_cuda else []):
            torch.manual_seed(seed)
            self.shift.copy_(codes.mean(0))
            self.factor.copy_(covariance_factor(covariance(codes)))
            self._play(whitened(codes - self.shift, self.factor), progress)
            with torch.no_grad():
                drawn = self().sample((max(4096, 8 * self.latent_dim),))
                if self.match_moments:
                    self._match(drawn.double(), codes.double())
        return {"condition": _condition(drawn) / _condition(codes)}

    def _whitened(self, z_base: Tensor) -> Tensor:
        u = self.network(z_base)
        return u if self.linear is None else u + self.linear(z_base)

    def _match(self, drawn: Tensor, codes: Tensor) -> None:
        """Move μ and L so that what was drawn would have had the codes' mean and covariance."""
        own, wanted = (covariance_factor(covariance(z)) for z in (drawn, codes))
        stretch = torch.linalg.solve_triangular(own, wanted, upper=False, left=False)
        self.shift.copy_(codes.mean(0) + stretch @ (self.shift.double() - drawn.mean(0)))
        self.factor.copy_(stretch @ self.factor.double())

    def _play(self, real_codes: Tensor, progress: bool) -> None:
        """The game on whitened codes; leaves the averaged weights in f and W."""
        learned = nn.ModuleList([self.network] + ([self.linear] if self.linear else []))
        players = (learned, self.critic)
        for player in players:
            nn.Module.train(player.requires_grad_(True), True)
        generator_opt, critic_opt = (
            torch.optim.Adam(p.parameters(), lr=self.lr, betas=(0.5, 0.9), fused=True)
            for p in players
        )
        average = [p.detach().clone() for p in learned.parameters()]
        base, n, batch = self.base(), len(real_codes), min(self.batch_size, len(real_codes))
        for step in track(range(self.steps), "PGAN", transient=True, disable=not progress):
            for optimizer in (generator_opt, critic_opt):
                optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
            self.critic.requires_grad_(True)
            for _ in range(self.critic_steps):
                real = real_codes[torch.randint(n, (batch,), device=real_codes.device)]
                with torch.no_grad():
                    fake = self._whitened(base.sample((batch,)))
                critic_opt.zero_grad()
                critic_loss(self.objective, self.critic, (real,), (fake,)).backward()
                critic_opt.step()
                clip_weights(self.objective, list(self.critic.parameters()))
            self.critic.requires_grad_(False)
            generator_opt.zero_grad()
            fake = self._whitened(base.sample((batch,)))
            self.objective.generator(self.critic(fake)).backward()
            generator_opt.step()
            decay = min(self.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.data for p in learned.parameters()], 1 - decay)
        for weight, mean in zip(learned.parameters(), average, strict=True):
            weight.data.copy_(mean)
        # Batch norm's running statistics belong to the last weights: take the average's own.
        with torch.no_grad():
            for norm in self.network.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    norm.reset_running_stats()
                    norm.momentum = None
            self.network(base.sample((4096,)))
        self.requires_grad_(False)
        self.eval()


def _condition(z: Tensor) -> float:
    """The smallest over the largest eigenvalue of the covariance."""
    eigenvalues = torch.linalg.eigvalsh(covariance(z))
    return float(eigenvalues[0] / eigenvalues[-1])
