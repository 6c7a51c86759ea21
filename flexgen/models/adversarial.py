"""GAN, LSGAN, hinge, WGAN and WGAN-GP: one LightningModule for any generator, critic and prior."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flexgen.checks import check_integer, first_line
from flexgen.contracts import Batch, Objective, Prior, in_context
from flexgen.distributions import drawn
from flexgen.models.critic_score import critic_score, warn_if_flat, warn_of_clipping
from flexgen.models.latent import Latent
from flexgen.objectives import Played, clip_weights, critic_loss
from flexgen.training import EMA
from flexgen.training.loop import DataRange, MakeOptimizer, MakeScheduler


class Adversarial(Latent):
    """A generator and a critic that play an objective's game, with codes from a prior.

    One *generator step* is `critic_steps` steps of the critic and one of the generator. The game is
    played on tuples: :meth:`real` makes one of a batch, :meth:`fake` one of codes, and the critic
    is called with either. With `num_classes` they are data and labels.

    Args:
        generator: codes `(batch, latent_dim)` to data `(batch, *shape)`; with labels if there are.
        critic: data to raw outputs `(batch,)`; with labels if there are.
        prior: p(z); it becomes stage 0 of a :class:`~flexgen.priors.Staged`. Its parameters, if
            it has trainable ones, learn with the generator. One that draws by score is handed the
            critic's.
        objective: the game.
        generator_optimizer: parameters to an optimizer, e.g. a `functools.partial` of Adam.
        critic_optimizer: the same for the critic.
        critic_steps: steps of the critic for one of the generator.
        simultaneous: whether both gradients are of the same weights, before either steps; else the
            generator answers the critic that has stepped.
        ema_decay: decay of the generator's average, which then is what samples; None: no average.
        generator_scheduler: optimizer to a schedule of its step size, stepped once a generator
            step; None: constant.
        critic_scheduler: the same for the critic, also stepped once a generator step.
        compile: networks to hand to `torch.compile`: "generator", "both" or None.
        **loop: see :class:`~flexgen.training.Loop`.

    Raises:
        ValueError: if a size is out of range, a prior with trainable parameters has draws without
            a gradient, or `compile` meets a gradient penalty, whose double backward it does not
            support.

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
        generator_optimizer: MakeOptimizer,
        critic_optimizer: MakeOptimizer,
        critic_steps: int = 1,
        simultaneous: bool = False,
        ema_decay: float | None = None,
        generator_scheduler: MakeScheduler | None = None,
        critic_scheduler: MakeScheduler | None = None,
        compile: str | None = None,
        **loop: Any,
    ) -> None:
        optimizers = generator_optimizer, critic_optimizer
        schedulers = generator_scheduler, critic_scheduler
        super().__init__(prior, optimizers=optimizers, schedulers=schedulers, **loop)
        check_integer("critic_steps", critic_steps, 1, "set `model.critic_steps=5`")
        if simultaneous and critic_steps > 1:
            raise ValueError(
                f"players that step at once step equally often, got {critic_steps} critic steps; "
                "set `model.critic_steps=1` or `model.simultaneous=false`"
            )
        if compile not in (None, "generator", "both"):
            raise ValueError(f"`compile` must be null, generator or both, got {compile!r}")
        if compile == "both" and objective.penalty_weight:
            raise ValueError(
                "`compile=both` cannot serve a gradient penalty, torch.compile does not support "
                "double backward; set `model.compile=generator`"
            )
        self.generator, self.critic = generator, critic
        self.objective = objective
        self.ema = None if ema_decay is None else EMA(generator, ema_decay)
        self.critic_steps, self.simultaneous = critic_steps, simultaneous
        self._score = partial(critic_score, generator, critic, shown=self.shown)
        self._flat = False
        self.bind(self.prior)
        learned = any(p.requires_grad for p in self.prior.parameters())
        if learned and not self.prior().has_rsample:
            raise ValueError(
                f"a prior learns with a generator by the gradient of its draws, and those of a "
                f"{type(self.prior.current).__name__} prior have none; start with prior=normal and "
                "learn this one by `flexgen refit`"
            )
        if compile:
            generator.compile()
        if compile == "both":
            critic.compile()

    @property
    def decoder(self) -> nn.Module:
        """The generator; its average if there is one."""
        return self.generator if self.ema is None else self.ema.module

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"score"}

    @property
    def batches_a_step(self) -> int:
        return self.accumulate * (self.critic_steps - self.counters.critic_phase)

    def learners(self) -> tuple[nn.Module, ...]:
        return nn.ModuleList([self.generator, self.prior]), self.critic

    def offers(self) -> dict[str, Any]:
        own = {"score": self.score} | ({} if self.num_classes else {"critic": self.score_of_data})
        return super().offers() | own

    def bind(self, prior: nn.Module) -> Prior:
        bound = super().bind(prior)
        if "score" in bound.needs:
            warn_of_clipping(self.objective.clip)
        return bound

    def score(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """How real the critic finds the data of codes `(n, latent_dim)`, `(n,)`; eval mode."""
        return critic_score(self.decoder, self.critic, z, context, shown=self.shown)

    @torch.no_grad()
    def score_of_data(self, x: Tensor) -> Tensor:
        """How real the critic finds data `(n, *shape)`, `(n,)`; without labels, in eval mode."""
        with self.evaluating():
            parts = x.to(self.device).split(1000)
            return torch.cat([self.critic(*self.real(Batch(part))) for part in parts])

    def try_out(self, shape: tuple[int, ...], data_range: DataRange = None) -> None:
        labels = self.in_turn(2)
        with torch.no_grad():
            z = self.prior.draw(2, labels)
            try:
                x = in_context(self.generator, z, labels)
                if tuple(x.shape[1:]) != shape:
                    raise ValueError(
                        f"the generator must make data of shape {shape}, got {tuple(x.shape[1:])}; "
                        "set `network.generator.shape=${data.shape}`"
                    )
                logits = self.critic(*self.shown(x, z, labels))
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"prior of codes ({self.latent_dim},), generator, critic and data {shape} do "
                    f"not fit: {first_line(error)}; give them one `latent_dim`, one "
                    "`data.shape` and one `num_classes`"
                ) from error
        if tuple(logits.shape) != (2,):
            raise ValueError(
                f"the critic must return logits of shape (batch,), got {tuple(logits.shape)} for a "
                "batch of 2; flatten its output"
            )

    def update(self, stream: Iterator[Batch], *optimizers: Any) -> None:
        generator_opt, critic_opt = optimizers
        counters = self.counters
        while counters.critic_phase < self.critic_steps:
            if self.stopping():
                return
            critic_opt.zero_grad()
            for _ in range(self.accumulate):
                self._batch = self.next_batch(stream)
                with torch.no_grad():
                    real = self.real(self._batch)
                    fake = self.fake("critic", len(real[0]), self._batch.context)
                self.accumulate_gradient(
                    critic_loss(self.objective, self.critic, real, fake, self.record)
                )
            if self.simultaneous:
                self._generator_gradient(generator_opt)
            self.step_optimizer(critic_opt, 1)
            clip_weights(self.objective, self._learned[1])
            counters.critic_steps += 1
            counters.critic_phase += 1
            # One update of the loss scale a batch: the last of a phase serves the generator too.
            if self._scaler is not None and counters.critic_phase < self.critic_steps:
                self._scaler.update()
        if not self.simultaneous:
            self._generator_gradient(generator_opt)
        self.step_optimizer(generator_opt, 0)
        if self.ema is not None:
            self.ema.update(self.generator)
        self.finish_step()
        counters.critic_phase = 0

    @staticmethod
    def shown(x: Tensor, z: Tensor | None, context: Tensor | None) -> Played:
        """What the critic is shown of data, their codes and their context."""
        return (x,) if context is None else (x, context)

    def real(self, batch: Batch) -> Played:
        """What the critic is shown of a batch."""
        return self.shown(batch.x, None, batch.context)

    def fake(self, player: str, n: int, context: Tensor | None) -> Played:
        """What it is shown of the generator in a step of `player`, "critic" or "generator"."""
        z = self.codes(player, n, context)
        return self.shown(in_context(self.generator, z, context), z, context)

    def codes(self, player: str, n: int, context: Tensor | None = None) -> Tensor:
        """Codes `(n, latent_dim)` for a step of `player`, by the networks that are trained."""
        prior = self.prior.current
        drawn_from = prior.at(player, self.counters.generator_steps, self._score, context)
        z = drawn(drawn_from, () if drawn_from.batch_shape else (n,))
        for name, value in prior.statistics.items():
            self.record(f"prior/{name}", value)
        return z

    def generator_loss(self, batch: Batch) -> Tensor:
        """What a generator step minimises, the batch being the critic's last; records it."""
        fake = self.fake("generator", len(batch.x), batch.context)
        loss = self.objective.generator(self.critic(*fake))
        self.record("loss/generator", loss)
        return loss

    def _generator_gradient(self, optimizer: Optimizer) -> None:
        # Gradients of the critic's weights are not wanted here: not computing them is a fifth
        # of the step.
        weights = self._learned[1]
        for weight in weights:
            weight.requires_grad = False
        optimizer.zero_grad()
        batch = self._batch
        for _ in range(self.accumulate):
            self.accumulate_gradient(self.generator_loss(batch))
        for weight in weights:
            weight.requires_grad = True

    def records_a_step(self, name: str) -> int:
        return self.accumulate * (1 if name == "loss/generator" else self.critic_steps)

    def _log_losses(self) -> None:
        super()._log_losses()
        # Said once.
        self._flat = self._flat or warn_if_flat(self.last_losses, self.counters.generator_steps)
