"""Priors that sample p(z) exp(s(z)), s a critic's score: by rejection and by a Langevin chain."""

import math

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer, check_positive
from flexgen.priors.reweighted import Reweighted, ReweightedDistribution

_SMALLEST_BURN_IN = 100
_FEWEST_PROPOSALS, _MOST_PROPOSALS = 100, 10_000
# Where s = s_max the logit of the acceptance is infinite, and so would be its percentile.
_EPS = 1e-8
# A gradient keeps the activations of all codes of a pass.
_CODES_A_PASS = 1000


class RejectionDistribution(ReweightedDistribution):
    """Draws of `base` that a :class:`Rejection` accepts; each call burns in for itself.

    What a call draws so depends on the generator's seed and the score alone, not on earlier calls.
    Its statistics are the standard deviation of the scores in the burn-in, `critic_std`, and the
    share of the proposals that were accepted, `acceptance`.
    """

    prior: "Rejection"

    def _draw(self, num: int, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        z, burn_in = self._propose(self.prior.burn_in, label)
        highest = burn_in.max()
        rate = float(self.prior.acceptance(burn_in, burn_in, highest).mean())
        kept, found, proposed = [z[:0]], 0, 0
        most = math.ceil(self.prior.max_proposals * num)
        while found < num:
            if proposed >= most:
                raise RuntimeError(
                    f"rejection must accept {num} codes in {most} proposals, got {found}; set "
                    "a lower `prior.percentile`, or raise `prior.max_proposals`"
                )
            wanted = min((num - found) / max(rate, 1 / _MOST_PROPOSALS), _MOST_PROPOSALS)
            n = min(max(math.ceil(wanted), _FEWEST_PROPOSALS), most - proposed)
            z, scores = self._propose(n, label)
            highest = highest.maximum(scores.max())
            accepted = torch.rand_like(scores) < self.prior.acceptance(scores, burn_in, highest)
            kept.append(z[accepted.to(z.device)])
            found, proposed = found + len(kept[-1]), proposed + n
        statistics = {"critic_std": burn_in.std()}
        if proposed:
            statistics["acceptance"] = torch.tensor(found / proposed)
        return torch.cat(kept)[:num], statistics

    def _propose(self, n: int, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes `(n, d)` of the base and their scores `(n,)`, float64 on the CPU."""
        z = self._base(n, label)
        with torch.no_grad():
            return z, self._scores(z.detach(), label).cpu().double()


class Rejection(Reweighted):
    r"""The base's draws, each accepted with a probability that rises with its score.

    .. math:: P(\text{accept } z) = σ(F), \quad
        F = s(z) − s_{max} − \log(1 − e^{s(z) − s_{max} − ε}) − γ

    With γ = 0 this is exp(s − s_max), and the draws have density p(z) exp(s(z)) up to a constant:
    the data's own, if s is the logit of the best critic of the original game for these codes. The
    scores of other games are no logits; there it is a tilt towards what the critic likes. Training
    draws from the base.

    Args:
        base: any prior; it needs no density.
        percentile: γ is this percentile of F + γ over the burn-in, in [0, 100]: a code there is
            accepted every second time. Higher follows the critic more and accepts less. None:
            γ = 0, exact, and slow where few codes score as high as the best.
        burn_in: codes that are scored at each call for a first s_max, and for γ; at least 100.
            s_max grows when a proposal scores higher.
        max_proposals: codes that are scored at most for each that is drawn, at least 1.

    Raises:
        ValueError: for a value out of range.

    Source: Azadi, Olsson, Darrell, Goodfellow & Odena, "Discriminator rejection sampling", 2019.
    Departures: s_max starts anew at each call, and γ comes from the burn-in, so that a draw does
    not depend on those before it.
    """

    distribution = RejectionDistribution

    def __init__(
        self, base: nn.Module, *, percentile: float | None = 80.0, burn_in: int = 1000,
        max_proposals: float = 1000,
    ) -> None:  # fmt: skip
        super().__init__(base, where="generation")
        if percentile is not None and not 0 <= percentile <= 100:
            raise ValueError(
                f"`percentile` must be in [0, 100] or null, got {percentile}; "
                "set `prior.percentile=80`"
            )
        check_integer("burn_in", burn_in, _SMALLEST_BURN_IN, "set `prior.burn_in=1000`")
        if not 1 <= max_proposals < math.inf:
            raise ValueError(
                f"`max_proposals` must be at least 1 and finite, got {max_proposals}; "
                "set `prior.max_proposals=1000`"
            )
        self.percentile = None if percentile is None else float(percentile)
        self.burn_in, self.max_proposals = burn_in, float(max_proposals)

    def acceptance(self, scores: Tensor, burn_in: Tensor, highest: Tensor) -> Tensor:
        """The probability σ(F) to accept each code of given scores, `(n,)`, float64.

        γ is taken from the scores `burn_in`, `(m,)`; `highest` is s_max, `()`.
        """
        logits = _logits(scores, highest)
        if self.percentile is not None:
            logits = logits - _logits(burn_in, highest).quantile(self.percentile / 100)
        return logits.sigmoid()


class ClimbingDistribution(ReweightedDistribution):
    """Draws of a base that are moved by the gradient of the scores; they carry none themselves."""

    prior: "Climbing"

    def _start(self, num: int, label: Tensor | None) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"a {type(self.prior).__name__} prior needs gradients, which torch.inference_mode "
                "rules out; draw outside, or build the trainer with Trainer(inference_mode=False)"
            )
        return self._base(num, label)

    def _energy(self, z: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """E `(n,)`, its gradient `(n, d)` and the scores `(n,)` at codes `(n, d)`."""
        passes = [self._energy_of_pass(codes, label) for codes in z.split(_CODES_A_PASS)]
        energy, slope, scores = (torch.cat(parts) for parts in zip(*passes, strict=True))
        return energy, slope, scores

    def _energy_of_pass(self, z: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            scores = self._scores(z, label)
            if not scores.requires_grad:
                raise ValueError(
                    f"`score` must pass gradients to the codes for a {type(self.prior).__name__} "
                    "prior, got scores without; compute them without `torch.no_grad` and `detach`"
                )
            energy = self.prior.energy(z, scores, None if label is None else label.expand(len(z)))
            # By `grad`, not `backward`: the networks' own gradients are the optimizers' business.
            (slope,) = torch.autograd.grad(energy.sum(), z)
        return energy.detach(), slope, scores.detach()


class Climbing(Reweighted):
    """A prior whose draws are moved down the gradient of an energy that the critic's scores make.

    Training draws from the base.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base, where="generation")

    def energy(self, z: Tensor, scores: Tensor, context: Tensor | None) -> Tensor:
        """E `(n,)` of codes `(n, d)` and their scores; by default the scores' negative."""
        return -scores


class LangevinDistribution(ClimbingDistribution):
    """The last states of chains that a :class:`Langevin` runs from draws of `base`.

    They carry no gradient to the base. Their statistics are the standard deviation of the first
    states' scores, `critic_std`, and, unless the Metropolis step is left out, the share of
    moves accepted, `acceptance`.
    """

    prior: "Langevin"

    def _draw(self, num: int, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        prior, eps = self.prior, self.prior.step_size
        with torch.no_grad():
            z = self._start(num, label)
            if not len(z):
                return z, {}
            energy, slope, scores = self._energy(z, label)
            statistics = {"critic_std": scores.std(correction=0)}
            accepted = []
            for step in range(1, prior.steps + 1):
                noise = torch.randn_like(z)
                moved = z - eps / 2 * slope + math.sqrt(eps) * noise
                if not moved.isfinite().all():
                    raise FloatingPointError(
                        f"the Langevin chain must stay finite, left it at step {step} with "
                        f"step size {eps}; lower `prior.step_size`"
                    )
                if not prior.metropolis:
                    z = prior.reflect(moved)
                    _, slope, _ = self._energy(z, label)
                    continue
                moved_energy, moved_slope, _ = self._energy(moved, label)
                back = z - moved + eps / 2 * moved_slope
                log_ratio = energy - moved_energy + noise.square().sum(-1) / 2
                log_ratio -= back.square().sum(-1) / (2 * eps)
                take = torch.rand_like(log_ratio).log() < log_ratio
                z = torch.where(take[:, None], moved, z)
                slope = torch.where(take[:, None], moved_slope, slope)
                energy = torch.where(take, moved_energy, energy)
                accepted.append(take.float().mean())
        if accepted:
            statistics["acceptance"] = torch.stack(accepted).mean()
        return z, statistics


class Langevin(Climbing):
    r"""Chains in latent space that climb the critic's score and the base's density, with noise.

    .. math:: E(z) = −\log p(z) − s(z)/T, \quad
        z ← z − \frac{ε}{2} ∇E(z) + \sqrt{ε}\, n, \quad n ∼ N(0, I)

    The chains start from draws of the base and tend to the density exp(−E) up to a constant; as
    for :class:`Rejection` that is the data's own for the logit of the original game's best critic.
    Each move is accepted or refused by the Metropolis rule (MALA), which keeps that density exact
    whatever ε is. Without it the moments are off by order ε, and by much where the score is steep
    at the length of a step; `acceptance` says when ε is too long.

    A move through the wall of a bounded support is refused; a plain step reflects there.

    Training draws from the base. A draw costs `steps` + 1 passes with gradient through generator
    and critic.

    Args:
        base: a prior with a density.
        steps: length of a chain, at least 1.
        step_size: ε, above 0.
        temperature: T, above 0; lower follows the critic more.
        metropolis: accept each move by the Metropolis rule; False: plain steps, as the paper has
            them.

    Raises:
        ValueError: for a base without density, or a value out of range.

    Source: Che, Zhang, Sohl-Dickstein, Larochelle, Paull, Cao & Bengio, "Your GAN is secretly an
    energy-based model and you should use discriminator driven latent sampling", 2020; Roberts &
    Tweedie, "Exponential convergence of Langevin distributions", 1996 (MALA).
    Departures: the Metropolis step, the temperature, and reflection on a box.
    """

    distribution = LangevinDistribution

    def __init__(
        self, base: nn.Module, *, steps: int = 100, step_size: float = 0.05,
        temperature: float = 1.0, metropolis: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(base)
        if not self.base.has_log_prob:
            raise ValueError(
                f"`base` must have a density for a Langevin prior, got {type(base).__name__}, "
                "which has none; set `prior@prior.base=normal`, or `prior=rejection`, which needs "
                "draws only"
            )
        check_integer("steps", steps, 1, "set `prior.steps=100`")
        check_positive("step_size", step_size, "set `prior.step_size=0.05`")
        check_positive("temperature", temperature, "set `prior.temperature=1`")
        self.steps, self.step_size = steps, float(step_size)
        self.temperature, self.metropolis = float(temperature), metropolis

    def energy(self, z: Tensor, scores: Tensor, context: Tensor | None) -> Tensor:
        log_prob: Tensor = self.base(context).log_prob(z)
        return -log_prob - scores / self.temperature

    def reflect(self, z: Tensor) -> Tensor:
        """Codes `(n, d)` folded back into the support, by as many reflections as it takes."""
        if self.support is None:
            return z
        low, high = self.support
        width = high - low
        folded = low + width - ((z - low).remainder(2 * width) - width).abs()
        return folded.clamp(low, high)  # rounding may pass a wall, where the density is 0


def _logits(scores: Tensor, highest: Tensor) -> Tensor:
    below = scores - highest
    return below - torch.log(-torch.expm1(below - _EPS))
