"""`posterior_codes`: codes as draws of their posterior, and the likelihood of any generator."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of, check_positive
from flexgen.contracts import Cost, Prior, in_context
from flexgen.priors import as_prior
from flexgen.reversal.checks import check_data
from flexgen.reversal.freezing import Generator, frozen, home
from flexgen.reversal.passes import OfSamples, Passes, fill
from flexgen.reversal.preparation import Contexts, check_context, checked, faster, tried
from flexgen.reversal.progress import bar

_SHARPNESS = 4.0  # of the sigmoid schedule
_ACCEPTANCE, _GAIN = 0.65, 0.2  # what a step size is adapted to, and how fast
_WARM_UP = 50  # transitions that fit the step size of a chain that starts at the posterior
_NOISE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class PosteriorCodes(OfSamples):
    """Draws of p(ε|x) of n samples, and what their chains say of p(x).

    Attributes:
        z: a draw of each, in the prior's base space, `(n, base_dim)`: the last state of one of its
            chains, chosen with probability proportional to the chains' weights. Chains from known
            codes end at draws of p(ε).
        states: the last `draws` states of each chain, `(n, chains, draws, base_dim)`.
        log_weights: log w of each chain, `(n, chains)`, nats. E w = p(x), or E 1/w = 1/p(x) of
            chains that were started at known codes.
        loss: ½‖x − G(z)‖² of each `z`, `(n,)`.
        acceptance: mean probability with which a chain's proposals were taken, `(n, chains)`.
        step_size: of each chain's leapfrog steps at its end, `(n, chains)`.
        from_known: whether the chains were started at known codes.
        how: what was done, in words.
    """

    z: Tensor
    states: Tensor
    log_weights: Tensor
    loss: Tensor
    acceptance: Tensor
    step_size: Tensor
    from_known: bool = False
    how: str = ""

    @property
    def log_prob(self) -> Tensor:
        """log p(x) of each sample, `(n,)`, nats: its mean over repetitions lies below log p(x), or
        above of chains from known codes, the less the more temperatures and chains there are."""
        sign = -1 if self.from_known else 1
        return sign * ((sign * self.log_weights).logsumexp(1) - math.log(self.log_weights.shape[1]))

    @property
    def effective_sample_size(self) -> Tensor:
        """(Σ w)² / Σ w² of each sample's chains, `(n,)`, from 1 to their number."""
        w = self.log_weights
        return (2 * w.logsumexp(1) - (2 * w).logsumexp(1)).exp()


class Mapped(nn.Module):
    """G∘f, for a prior that is a map f of a simple one."""

    def __init__(self, prior: Prior, generator: Generator) -> None:
        super().__init__()
        self.prior, self.generator = prior, generator

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Tensor:
        x: Tensor = in_context(self.generator, self.prior.base_space().to_code(eps), context)
        return x


def posterior_codes(
    generator: Generator,
    x: Tensor,
    *,
    prior: nn.Module,
    sigma: float,
    context: Tensor | None = None,
    known: Tensor | None = None,
    num_temperatures: int = 300,
    leapfrog_steps: int = 8,
    chains: int = 1,
    draws: int = 1,
    thin: int = 10,
    precision: Literal["auto", "plain"] = "auto",
    batch_size: int = 512,
    index: Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorCodes:
    r"""Draws of p(ε|x) ∝ p(ε) N(x; G(f(ε)), σ²I) and log p(x), by annealed importance sampling.

    ε is a code in the base space of the prior f#p(ε), ε = z where it is no map. A chain starts at a
    draw of p(ε) and takes one transition of Hamiltonian Monte Carlo, of `leapfrog_steps` steps, at
    each of T temperatures, for densities p(ε) N(x; G(f(ε)), σ²I)^β_t with 0 = β_0 < … < β_T = 1 and

        log w = Σ_t (β_t − β_{t−1}) log N(x; G(f(ε_{t−1})), σ²I),   E w = p(x) = ∫ p(ε) N(x; …) dε.

    The temperatures are β_t ∝ s(4(2t/T − 1)) − s(−4), s the logistic function. So the mean of
    log w is a lower bound of log p(x). With `known` codes of the data, exact draws of the
    posterior, as x = G(f(ε)) + σ n has one, the chain goes from β = 1 to 0 and E 1/w = 1/p(x): an
    upper bound. Both bounds on data that the model generated itself enclose the truth there, and
    their gap says how far to trust log p(x) elsewhere ("BDMC"): levels at 300 temperatures may lie
    nats apart from those at 1,500, differences between two models on the same images far less.

    With a p(ε) that is N(0, s²I), the leapfrog integrator turns exactly in the field of p(ε), by
    three shears, and is kicked by the likelihood. Each chain has its own step size, moved after
    each transition towards an acceptance of 0.65, log h ← log h + 0.2 (α − 0.65), up to half a turn
    a transition and a quarter a step. A move that depends on the chain's past makes E w = p(x)
    approximate. Where f goes coordinate by coordinate and p(z) takes one pass, as of MAF, chains
    move codes z, and their ends are mapped to ε: the same posterior and p(x), at the price of p(z).

    Random numbers are functions of (seed, index) and all state is a sample's own, so draws do not
    depend on the samples beside it, as in :func:`~flexgen.reversal.reverse`, with the same words on
    the generator's arithmetic.

    Args:
        generator: codes of the prior to data, a module or any callable, differentiable; held in
            eval mode, and left as it was.
        x: data, `(n, *shape)`, finite.
        prior: over the generator's codes, with a density in its base space.
        sigma: σ of the noise, in units of x. No level of log p(x) means anything without it.
        context: what the generator is called with beside the codes, of each sample, `(n, …)`.
        known: codes in the base space that the data were made of, `(n, base_dim)`.
        num_temperatures: T.
        leapfrog_steps: passes of the generator a transition, forward and back.
        chains: of each sample.
        draws: states kept of each chain: its end, and others after `thin` more transitions each.
        thin: see `draws`.
        precision: "auto" for a faster copy of the generator in its own precision where it is the
            same function; "plain" for its own pass.
        batch_size: chains at a time; bounds the memory.
        index: of each sample in its data set, `(n,)`, by which its random numbers are found.
        seed: of all random numbers. The global generators are not touched.
        progress: whether to show a progress bar on standard error.

    Raises:
        ValueError: for an option out of range, data that do not fit the generator or are not
            finite, or a prior without a normalised density in its base space.
        RuntimeError: inside `torch.inference_mode`, where no gradient can be had.

    Cost: T · `leapfrog_steps` passes forward and back, and `_WARM_UP` transitions more from known
        codes; memory O(`batch_size`).

    Source: Neal, "Annealed importance sampling", 2001; Wu et al., "On the quantitative analysis of
        decoder-based generative models", 2017, section 3 (noise model, schedule, step sizes);
        Grosse et al., "Sandwiching the marginal likelihood using bidirectional Monte Carlo", 2015;
        the integrator: Shahbaba et al., "Split Hamiltonian Monte Carlo", 2014, section 3.

    Example:
        >>> from flexgen.priors import Normal
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> found = posterior_codes(lambda z: z, x, prior=Normal(2), sigma=1.0, chains=50)
        >>> bool((found.log_prob + math.log(4 * math.pi) + 0.25).abs() < 0.2)  # x ~ N(0, 2I)
        True
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "`posterior_codes` needs gradients, which torch.inference_mode rules out; call it "
            "outside, or build the trainer with Trainer(inference_mode=False)"
        )
    check_positive("sigma", sigma, "it is the standard deviation of the noise on x")
    check_one_of("precision", precision, ("auto", "plain"))
    counts = {
        "num_temperatures": num_temperatures, "leapfrog_steps": leapfrog_steps, "chains": chains,
        "draws": draws, "thin": thin, "batch_size": batch_size,
    }  # fmt: skip
    for name, count in counts.items():
        check_integer(name, count)
    check_integer("seed", seed, 0)
    check_data(x, unit=False)
    check_context(context, len(x))
    whole = as_prior(prior)
    space = whole.base_space()
    base = space.prior
    # A map that goes coordinate by coordinate would be gone through in each pass.
    in_codes = space.to_code_cost is Cost.SEQUENTIAL and whole.log_prob_cost is Cost.PARALLEL
    if base is not whole and not in_codes:
        generator = Mapped(whole, generator)
    if not base.has_log_prob or not base.normalised:
        raise ValueError(
            f"a {type(base).__name__} prior has no normalised density, without which codes have no "
            "posterior; use prior=normal, pushforward or realnvp, or codes by reversal "
            "(`refit.source=reversal`)"
        )
    if known is not None and known.shape != (len(x), base.latent_dim):
        raise ValueError(
            f"`known` must hold a code of each datum, {(len(x), base.latent_dim)}, got "
            f"{tuple(known.shape)}"
        )
    index = torch.arange(len(x)) if index is None else index.cpu()
    if index.shape != (len(x),):
        raise ValueError(
            f"`index` must hold one number for each of {len(x)} samples, got {tuple(index.shape)}"
        )
    device, weights = home(generator, x)
    dtype = torch.promote_types(weights, torch.float32)
    generate = checked(generator, x, (base.latent_dim,))
    contexts = Contexts(context, device)
    betas = _schedule(num_temperatures)
    transitions = num_temperatures + 1 + (_WARM_UP if known is not None else (draws - 1) * thin)
    parts: list[dict[str, Tensor]] = []
    with (
        frozen(generator, "eval"), frozen(whole, "eval"),
        torch.autocast(device.type, enabled=False),
    ):  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            probe = base.draw(16, contexts.first(16)).to(device, dtype)
        probe = space.to_code(probe) if in_codes else probe
        given = contexts.of(torch.zeros(16, dtype=torch.long))
        made = tried(generate, probe, *given)
        passes = Passes(generate, generate, "plain passes")
        if precision == "auto":
            passes = faster(generator, generate, "float32", probe, made, *given)
        with bar(len(x), progress, None, "posterior codes") as told:
            for place in torch.arange(len(x)).split(max(1, batch_size // chains)):
                tell = told(len(place))
                rows = fill(place.repeat_interleave(chains))
                target = _Target(
                    passes, x[rows.to(x.device)].to(device, dtype), sigma,
                    whole if in_codes else base, contexts.of(rows),
                )  # fmt: skip
                noise = _Noise(
                    index[place].tolist(), chains, len(rows), base.latent_dim, seed, transitions
                )
                if known is None:
                    start = noise.starts(base, target.context).to(target.x)
                else:
                    start = known[rows.to(known.device)].to(device, dtype)
                start = space.to_code(start) if in_codes else start
                chain = _Chain(target, noise, start, known is not None, leapfrog_steps)
                log_weights = chain.anneal(betas if known is None else betas[::-1], tell)
                states = chain.states(draws, thin if known is None else 0)
                if in_codes:
                    assert space.from_code is not None
                    states = space.from_code(states)
                shape = (len(place), chains)
                real = slice(len(place) * chains)
                found = {
                    "log_weights": log_weights[real].view(shape),
                    "states": states[real].view(*shape, draws, -1),
                    "acceptance": chain.acceptance[real].view(shape),
                    "step_size": chain.log_step[real].exp().view(shape),
                    "loss": chain.state.log_likelihood[real].mul(-(sigma**2)).view(shape),
                }
                chosen = (found["log_weights"] + noise.gumbel.to(device)).argmax(1)
                every = torch.arange(len(place), device=device)
                found["z"] = found["states"][every, chosen, -1]
                found["loss"] = found["loss"][every, chosen]
                parts.append({name: value.to(x.device) for name, value in found.items()})
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    many = f"{chains} chains" if chains > 1 else "1 chain"
    how = (
        f"annealed HMC, σ {sigma:g}, {num_temperatures} temperatures of {leapfrog_steps} leapfrog "
        f"steps, {many}, {passes.how}"
    )
    return PosteriorCodes(**values, from_known=known is not None, how=how)


def _schedule(num_temperatures: int) -> list[float]:
    """β_0 = 0 to β_T = 1."""
    t = torch.linspace(-_SHARPNESS, _SHARPNESS, num_temperatures + 1, dtype=torch.float64).sigmoid()
    betas: list[float] = ((t - t[0]) / (t[-1] - t[0])).tolist()
    return betas


class _Noise:
    """The random numbers of a batch, a stream for each of its samples."""

    def __init__(
        self, index: list[int], chains: int, rows: int, dim: int, seed: int, transitions: int
    ) -> None:
        self._streams = [np.random.Generator(np.random.SFC64([seed, i])) for i in index]
        self.index, self.chains, self.rows, self.dim, self.seed = index, chains, rows, dim, seed
        # Of each sample's chains, (samples, chains); first of all, as a block's size may differ.
        gumbel = np.stack([stream.gumbel(size=chains) for stream in self._streams])
        self.gumbel = torch.from_numpy(gumbel)
        most = max(1, _NOISE_ELEMENTS // (rows * (dim + 1)))
        self._block = -(-transitions // -(-transitions // most))
        self._ready: Iterator[Tensor] = iter(())

    def __call__(self) -> Tensor:
        """Normals of one transition, `(rows, dim + 1)`, float32 on the CPU."""
        if (drawn := next(self._ready, None)) is None:
            shape = (self._block, self.chains, self.dim + 1)
            each = [stream.standard_normal(shape, np.float32) for stream in self._streams]
            drawn = torch.from_numpy(np.concatenate(each, axis=1))
            self._ready = iter(self._filled(drawn).unbind())
            drawn = next(self._ready)
        return drawn

    def starts(self, base: Prior, context: tuple[Tensor, ...]) -> Tensor:
        """A draw of the base prior for each row."""
        if (scale := base.normal_scale) is not None:
            return self()[:, :-1] * scale
        drawn, device = [], next(iter(base.buffers()), torch.zeros(())).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for place, i in enumerate(self.index):
                torch.manual_seed(int(np.random.SeedSequence([self.seed, i]).generate_state(1)[0]))
                of_one = slice(place * self.chains, (place + 1) * self.chains)
                drawn.append(base.draw(self.chains, *(c[of_one] for c in context)))
        return self._filled(torch.cat(drawn)[None])[0]

    def _filled(self, drawn: Tensor) -> Tensor:
        """Further rows to `rows`, copies of the first."""
        more = self.rows - drawn.shape[1]
        return torch.cat([drawn, drawn[:, :1].expand(-1, more, -1)], 1) if more else drawn


class _State(NamedTuple):
    """Codes of rows; log N(x; G, σ²I) up to its constant; σ² times its gradient; log p(ε)."""

    z: Tensor
    log_likelihood: Tensor
    gradient: Tensor
    log_prior: Tensor


class _Target:
    """log p(ε) and log N(x; G(ε), σ²I) of rows."""

    def __init__(
        self, passes: Passes, x: Tensor, sigma: float, base: Prior, context: tuple[Tensor, ...]
    ) -> None:
        self.passes, self.x, self.base, self.context = passes, x, base, context
        self.precision = 1 / sigma**2
        self.constant = -0.5 * x[0].numel() * math.log(2 * math.pi * sigma**2)
        self.scale = base.normal_scale

    def residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x − G(ε), and σ² times the gradient of log N(x; G(ε), σ²I)."""
        return self.passes.residual(z, self.x, *self.context)

    def log_prior(self, z: Tensor) -> Tensor:
        if self.scale is not None:
            return z.square().sum(1) * (-0.5 / self.scale**2)
        log_prob: Tensor = self.base(*self.context).log_prob(z)
        return log_prob

    def state(self, z: Tensor, residual: Tensor, gradient: Tensor) -> _State:
        misfit = residual.flatten(1).square().sum(1) * (0.5 * self.precision)
        return _State(z, -misfit, gradient, self.log_prior(z))

    def flow(self, step: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """A step in the field of p(ε) alone, as three shears: p += a b, z += s p, p += a b.

        Args:
            step: of each row, `(rows, 1)`.

        Returns:
            s, and codes z to (a, b).
        """
        if (scale := self.scale) is not None:  # a rotation
            angle = step / scale
            pull = (0.5 * angle).tan() / -scale
            return angle.sin() * scale, lambda z: (pull, z)
        half = 0.5 * step
        return step, lambda z: (half, self._slope(z))

    def _slope(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_prior = self.log_prior(z)
        if not log_prior.requires_grad:  # a uniform one
            return torch.zeros_like(z)
        return torch.autograd.grad(log_prior, z, torch.ones_like(log_prior))[0]


class _Chain:
    """Chains of Hamiltonian Monte Carlo, one a row."""

    def __init__(
        self, target: _Target, noise: _Noise, start: Tensor, known: bool, leapfrog_steps: int
    ) -> None:
        self.target, self.noise, self.leapfrog_steps = target, noise, leapfrog_steps
        self.x, self.known = target.x, known
        self.state = target.state(start, *target.residual(start))
        self.longest = math.log(math.pi * (target.scale or 1) / max(leapfrog_steps, 2))
        self.log_step = torch.full_like(self.state.log_prior, self.longest - math.log(2))
        self.acceptance = torch.zeros_like(self.log_step)
        self.transitions = 0

    def anneal(self, betas: list[float], tell: Callable[[float, Tensor, Tensor], None]) -> Tensor:
        """log w of each row, `(rows,)` float64."""
        log_weights = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)
        for _ in range(_WARM_UP if self.known else 0):
            self.step(1.0)
        for t, (before, after) in enumerate(pairwise(betas), 1):
            if self.known:
                self.step(before)
            log_weights += abs(after - before) * self.state.log_likelihood
            if not self.known:
                self.step(after)
            loss = self.state.log_likelihood / -self.target.precision
            tell(t / (len(betas) - 1), self.state.z, loss)
        return log_weights + self.target.constant

    def states(self, draws: int, thin: int) -> Tensor:
        """`(rows, draws, dim)`, the first as they are now."""
        kept = [self.state.z]
        for _ in range(draws - 1):
            for _ in range(thin):
                self.step(1.0)
            kept.append(self.state.z)
        return torch.stack(kept, 1)

    def step(self, beta: float) -> None:
        """One transition that leaves p(ε) N(x; G(ε), σ²I)^β invariant."""
        target, state = self.target, self.state
        noise = self.noise().to(self.x)
        z, momentum = state.z.clone(), noise[:, :-1]
        before = self._energy(state, momentum, beta)
        step = self.log_step.exp()[:, None]
        kick = 0.5 * beta * target.precision * step
        drift, pull = target.flow(step)
        momentum = torch.addcmul(momentum, kick, state.gradient).addcmul_(*pull(z))
        for left in range(self.leapfrog_steps - 1, -1, -1):
            z.addcmul_(drift, momentum)
            residual, gradient = target.residual(z)
            # The end of this step and the start of the next are one shear.
            both = 2 if left else 1
            momentum.addcmul_(kick, gradient, value=both).addcmul_(*pull(z), value=both)
        proposed = target.state(z, residual, gradient)
        # Not a number: a proposal from outside of what the generator can take.
        change = before - self._energy(proposed, momentum, beta)
        chance = change.nan_to_num(-math.inf).clamp(max=0).exp()
        taken = torch.special.ndtr(noise[:, -1]) < chance
        self.state = _State(*(
            torch.where(taken.view(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(proposed, state, strict=True)
        ))  # fmt: skip
        moved = self.log_step + _GAIN * (chance - _ACCEPTANCE)
        self.log_step = moved.clamp(max=self.longest)
        self.transitions += 1
        self.acceptance += (chance - self.acceptance) / self.transitions

    @staticmethod
    def _energy(state: _State, momentum: Tensor, beta: float) -> Tensor:
        kinetic = 0.5 * momentum.square().sum(1)
        return kinetic - state.log_prior - beta * state.log_likelihood
