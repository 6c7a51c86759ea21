"""GAN, LSGAN, hinge, WGAN and WGAN-GP: one LightningModule for any generator, critic and prior."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flexgen.models.critic_score import CriticScore, FlatCritic, attach_critic, training_prior
from flexgen.models.generative import Generative, at_least_one
from flexgen.objectives import Objective, gradient_penalty
from flexgen.training import EMA

__all__ = ["Adversarial"]


class Adversarial(Generative):
    """A generator and a critic that play an objective's game, with codes from a prior.

    One *generator step* is `critic_steps` steps of the critic and one of the generator.

    Args:
        generator: codes `(batch, latent_dim)` to data `(batch, *shape)`.
        critic: data to raw outputs `(batch,)`.
        prior: p(z); it becomes stage 0 of a :class:`~flexgen.priors.Staged`. Its parameters, if
            it has trainable ones, learn with the generator. One that draws by score is handed the
            critic's.
        objective: the game.
        generator_optimizer: parameters to an optimizer, e.g. a `functools.partial` of Adam.
        critic_optimizer: the same for the critic.
        critic_steps: steps of the critic for one of the generator.
        ema_decay: decay of the generator's average, which then is what samples; None: no average.
        gradient_clip: largest norm of each player's gradient; None: no clipping.
        accumulate: batches whose gradients one optimizer step averages.
        generator_scheduler: optimizer to a schedule of its step size, stepped once a generator
            step; None: constant.
        critic_scheduler: the same for the critic, also stepped once a generator step.
        compile: networks to hand to `torch.compile`: "generator", "both" or None.
        log_every: generator steps between two rows of losses.

    Attributes:
        counters: the steps so far.
        schedule: where callbacks register the steps at which they must act.
        stop_requested: set it, from a signal handler say, to stop before the next critic step.
        last_losses: the means that were logged last.

    Raises:
        ValueError: if a size is out of range, prior and generator differ in `latent_dim`, or
            `compile` meets a gradient penalty, whose double backward it does not support.

    Source: Goodfellow et al., 2014, Algorithm 1; Arjovsky et al., 2017, Algorithm 1; Gulrajani et
    al., 2017, Algorithm 1. With a learned prior, Kilcher et al., section 3.
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        prior: nn.Module,
        objective: Objective,
        *,
        generator_optimizer: Callable[[Iterable[Tensor]], Optimizer],
        critic_optimizer: Callable[[Iterable[Tensor]], Optimizer],
        critic_steps: int = 1,
        ema_decay: float | None = None,
        gradient_clip: float | None = None,
        accumulate: int = 1,
        generator_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        critic_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        compile: str | None = None,
        log_every: int = 100,
    ) -> None:
        super().__init__(
            prior, gradient_clip=gradient_clip, accumulate=accumulate, log_every=log_every
        )
        at_least_one("critic_steps", critic_steps)
        if compile not in (None, "generator", "both"):
            raise ValueError(f"`compile` must be null, generator or both, got {compile!r}")
        if compile == "both" and objective.penalty_weight:
            raise ValueError(
                "`compile=both` cannot serve a gradient penalty, torch.compile does not support "
                "double backward; set `model.compile=generator`"
            )
        dim = self.latent_dim
        if (wanted := getattr(generator, "latent_dim", dim)) != dim:
            raise ValueError(
                f"the generator's `latent_dim` must equal the prior's event shape ({dim},), got "
                f"{wanted}; set one `latent_dim` for both"
            )
        self.generator, self.critic = generator, critic
        self.objective = objective
        self.ema = None if ema_decay is None else EMA(generator, ema_decay)
        self.attach(self.prior)
        self._score, self._flat = CriticScore(generator, critic), FlatCritic()
        self.critic_steps = critic_steps
        self._optimizers = generator_optimizer, critic_optimizer
        self._schedulers = generator_scheduler, critic_scheduler
        if compile:
            generator.compile()
        if compile == "both":
            critic.compile()

    @property
    def sampler(self) -> nn.Module:
        """The network to sample, reverse and score with: the average if there is one."""
        return self.generator if self.ema is None else self.ema.module

    def attach(self, prior: nn.Module) -> None:
        for module in prior.modules():
            self.attach_posterior(module)
        attach_critic(prior, self.sampler, self.critic, self.objective.clip)

    def check_fit(
        self, shape: tuple[int, ...], data_range: tuple[float, float] | None = None
    ) -> None:
        with torch.no_grad():
            try:
                x = self.generator(self.prior().sample(torch.Size((2,))))
                if tuple(x.shape[1:]) != shape:
                    raise ValueError(
                        f"the generator must make data of shape {shape}, got {tuple(x.shape[1:])}; "
                        "set `network.generator.shape=${data.shape}`"
                    )
                logits = self.critic(x)
            except RuntimeError as error:
                raise ValueError(
                    f"prior, generator, critic and data do not fit: {str(error).splitlines()[0]}; "
                    "give them one `latent_dim` and one `data.shape`"
                ) from error
        if tuple(logits.shape) != (2,):
            raise ValueError(
                f"the critic must return logits of shape (batch,), got {tuple(logits.shape)} for a "
                "batch of 2; flatten its output"
            )

    def configure_optimizers(self) -> Any:
        self._generator_parameters: list[Tensor] = [
            p for m in (self.generator, self.prior) for p in m.parameters() if p.requires_grad
        ]
        self._critic_parameters: list[Tensor] = list(self.critic.parameters())
        players = self._generator_parameters, self._critic_parameters
        optimizers = [make(p) for make, p in zip(self._optimizers, players, strict=True)]
        self._lr_schedulers = [
            make(optimizer)
            for make, optimizer in zip(self._schedulers, optimizers, strict=True)
            if make is not None
        ]
        return optimizers, self._lr_schedulers

    def _update(self, stream: Iterator[Tensor], *optimizers: Any) -> None:
        """One generator step, or what is left of one that was stopped in its critic phase."""
        generator_opt, critic_opt = optimizers
        counters = self.counters
        while counters.critic_phase < self.critic_steps:
            if self._stopping():
                return
            self._critic_step(stream, critic_opt)
            counters.critic_phase += 1
        self._generator_step(generator_opt)
        counters.critic_phase = 0
        for scheduler in self._lr_schedulers:
            scheduler.step()

    def _critic_step(self, stream: Iterator[Tensor], optimizer: Optimizer) -> None:
        for weight in self._critic_parameters:
            weight.requires_grad = True
        optimizer.zero_grad()
        for _ in range(self.accumulate):
            real = next(stream)
            self._batch_size = len(real)
            with torch.no_grad():
                fake = self.generator(self._codes("critic", len(real)))
            loss = self.objective.critic(self.critic(real), self.critic(fake))
            self._record("loss/critic", loss)
            if self.objective.penalty_weight:
                penalty = gradient_penalty(self.critic, real, fake)
                self._record("loss/penalty", penalty)
                loss = loss + self.objective.penalty_weight * penalty
            self._backward(loss)
            self.counters.batches += 1
            self.counters.images_seen += len(real) * self.trainer.world_size
        self._step(optimizer, self._critic_parameters)
        if (clip := self.objective.clip) is not None:
            with torch.no_grad():
                torch._foreach_clamp_min_(self._critic_parameters, -clip)
                torch._foreach_clamp_max_(self._critic_parameters, clip)
        self.counters.critic_steps += 1
        # One update of the loss scale a batch: the last batch of a phase serves the generator too.
        if self._scaler is not None and self.counters.critic_phase + 1 < self.critic_steps:
            self._scaler.update()

    def _generator_step(self, optimizer: Optimizer) -> None:
        # Gradients of the critic's weights are not wanted here: not computing them is a fifth
        # of the step.
        for weight in self._critic_parameters:
            weight.requires_grad = False
        optimizer.zero_grad()
        for _ in range(self.accumulate):
            fake = self.generator(self._codes("generator", self._batch_size))
            loss = self.objective.generator(self.critic(fake))
            self._record("loss/generator", loss)
            self._backward(loss)
        self._step(optimizer, self._generator_parameters)
        if self._scaler is not None:
            self._scaler.update()
        if self.ema is not None:
            self.ema.update(self.generator)
        self.counters.generator_steps += 1

    def _codes(self, player: str, n: int) -> Tensor:
        """Codes `(n, latent_dim)` for a step of `player`."""
        prior = training_prior(self.prior, player, self.counters.generator_steps, self._score)
        z: Tensor = prior.rsample(torch.Size((n,)))
        for name, value in getattr(prior, "statistics", {}).items():
            self._record(f"prior/{name}", value)
        return z

    def _batches_a_step(self, name: str) -> int:
        return self.accumulate * (1 if name == "loss/generator" else self.critic_steps)

    def _log_losses(self) -> None:
        super()._log_losses()
        self._flat.watch(self.last_losses, self.counters.generator_steps)
