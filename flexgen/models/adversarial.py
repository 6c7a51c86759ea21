"""GAN, LSGAN, hinge, WGAN and WGAN-GP: one LightningModule for any generator, critic and prior."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flexgen.models.scoring import CriticScore, FlatCritic, attach_critic, training_prior
from flexgen.objectives import Objective, gradient_penalty
from flexgen.priors import Staged
from flexgen.priors.staged import event_dim
from flexgen.training import EMA, Counters, Schedule, rng_state, set_rng_state

__all__ = ["Adversarial"]

_SECONDS_A_CALL = 0.25
_UPDATES_A_CALL = 64


class Adversarial(pl.LightningModule):
    """A generator and a critic that play an objective's game, with codes from a prior.

    One *generator step* is `critic_steps` steps of the critic and one of the generator. A call of
    `training_step` makes many of them, up to the next that `schedule` names, so that Lightning's
    bookkeeping is paid once for all; it is handed a stream of batches, not a batch.

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
        super().__init__()
        for name, count in (
            ("critic_steps", critic_steps),
            ("accumulate", accumulate),
            ("log_every", log_every),
        ):
            if count < 1:
                raise ValueError(f"`{name}` must be at least 1, got {count}; set `model.{name}=1`")
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"`gradient_clip` must be above 0, got {gradient_clip}; or null")
        if compile not in (None, "generator", "both"):
            raise ValueError(f"`compile` must be null, generator or both, got {compile!r}")
        if compile == "both" and objective.penalty_weight:
            raise ValueError(
                "`compile=both` cannot serve a gradient penalty, torch.compile does not support "
                "double backward; set `model.compile=generator`"
            )
        dim = event_dim(prior)
        if (wanted := getattr(generator, "latent_dim", dim)) != dim:
            raise ValueError(
                f"the generator's `latent_dim` must equal the prior's event shape ({dim},), got "
                f"{wanted}; set one `latent_dim` for both"
            )
        self.automatic_optimization = False
        self.generator, self.critic = generator, critic
        self.prior = prior if isinstance(prior, Staged) else Staged([prior])
        self.objective = objective
        self.ema = None if ema_decay is None else EMA(generator, ema_decay)
        attach_critic(self.prior, self.sampler, critic, objective.clip)
        self._score, self._flat = CriticScore(generator, critic), FlatCritic()
        self.latent_dim = dim
        self.critic_steps, self.accumulate, self.log_every = critic_steps, accumulate, log_every
        self.gradient_clip = gradient_clip
        self._optimizers = generator_optimizer, critic_optimizer
        self._schedulers = generator_scheduler, critic_scheduler
        if compile:
            generator.compile()
        if compile == "both":
            critic.compile()
        self.counters, self.schedule = Counters(), Schedule()
        self.schedule.register(log_every)
        self.stop_requested = False
        self._stop_agreed = False
        self.last_losses: dict[str, float] = {}
        self._losses: dict[str, list[Tensor]] = {}
        self._rng: dict[str, Any] | None = None

    @property
    def sampler(self) -> nn.Module:
        """The network to sample, reverse and score with: the average if there is one."""
        return self.generator if self.ema is None else self.ema.module

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw n data points from the sampler in eval mode, codes from the prior in use."""
        with self.evaluating():
            return self.generate(self.prior().sample((n,)))

    @torch.no_grad()
    def generate(self, z: Tensor, batch_size: int = 1000) -> Tensor:
        """Data `(n, *shape)` of codes `(n, latent_dim)`, by the sampler in eval mode."""
        with self.evaluating():
            return torch.cat([self.sampler(codes).float() for codes in z.split(batch_size)])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Everything in eval mode; afterwards each part in its own mode again."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

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

    def training_step(self, stream: Iterator[Tensor], batch_idx: int) -> None:
        """Run updates up to the next scheduled step; return earlier now and then to be watched."""
        optimizers: Any = self.optimizers(use_pl_optimizer=False)
        self._scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        until = self.schedule.next_after(self.counters.generator_steps)
        # Processes must return together: they end a call by count, one alone may by the clock.
        last = min(until, self.counters.generator_steps + _UPDATES_A_CALL)
        alone = self.trainer.world_size == 1
        deadline = time.monotonic() + _SECONDS_A_CALL if alone else None
        if not alone:
            asked = torch.tensor(float(self.stop_requested), device=self.device)
            self._stop_agreed = bool(self.trainer.strategy.reduce(asked, reduce_op="max"))
        while self.counters.generator_steps < last and not self._stopping():
            self._update(stream, *optimizers)
            if deadline is not None and time.monotonic() > deadline:
                break
        step, end = self.counters.generator_steps, self.schedule.end
        stopping = self._stopping()
        if step == until or stopping:
            self._check_losses()
        if not self.counters.critic_phase and (step % self.log_every == 0 or step == end):
            self._log_losses()
        if stopping or (end is not None and step >= end):
            self.trainer.should_stop = True

    def _stopping(self) -> bool:
        """Whether to stop here: alone at once, among others when all have agreed to."""
        return self.stop_requested if self.trainer.world_size == 1 else self._stop_agreed

    def _update(self, stream: Iterator[Tensor], generator_opt: Any, critic_opt: Any) -> None:
        """One generator step, or what is left of one that was stopped in its critic phase."""
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

    def _backward(self, loss: Tensor) -> None:
        self.manual_backward(loss if self.accumulate == 1 else loss / self.accumulate)

    def _step(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        """Step the torch optimizer itself: Lightning's wrapper updates the loss scale each time."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if self.gradient_clip is not None:
            clip_grad_norm_(parameters, self.gradient_clip)
        if self._scaler is not None:
            self._scaler.step(optimizer)
        else:
            optimizer.step()

    def _record(self, name: str, loss: Tensor) -> None:
        self._losses.setdefault(name, []).append(loss.detach())

    def _check_losses(self) -> None:
        """Stop at a non-finite loss, before anything is saved or measured.

        Raises:
            FloatingPointError: naming the term and the step at which it first occurred.
        """
        for name, losses in self._losses.items():
            finite = torch.stack(losses).isfinite()
            if not finite.all():
                first = int(finite.int().argmin())
                per_step = self.accumulate * (1 if name == "loss/generator" else self.critic_steps)
                back = (len(losses) - 1 - first) // per_step
                raise FloatingPointError(
                    f"{name} is {float(losses[first])} at generator step "
                    f"{self.counters.generator_steps - back}; lower the step sizes, or set "
                    "`model.gradient_clip=1`"
                )

    def _log_losses(self) -> None:
        means = {name: float(torch.stack(v).mean()) for name, v in self._losses.items() if v}
        if means:
            if self.counters.generator_steps % self.log_every == 0:
                self._losses.clear()
            self.last_losses = means
            self.log_values(means)
            self._flat.watch(means, self.counters.generator_steps)

    def log_values(self, values: dict[str, float]) -> None:
        """Log values with every step counter, at the generator step.

        `self.log` costs 300 µs a scalar and step and counts in Lightning's own steps.
        """
        for logger in self.loggers:
            logger.log_metrics({**self.counters.axes(), **values}, self.counters.generator_steps)

    def match_stages(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """`state_dict` with the prior's stages that this model has, no more and no less.

        A run that starts from another's checkpoint may have a stage more, not fitted yet, or
        leave out one that is not in use.

        Raises:
            ValueError: if it leaves out the one in use.
        """
        prefix = "prior.stages."
        last = len(self.prior.stages) - 1
        if (in_use := int(state_dict["prior.stage"])) > last:
            raise ValueError(
                f"the checkpoint uses stage {in_use} of its prior, and the run has stages up to "
                f"{last}; keep the refit callback of the run that it came from"
            )
        matched = {
            key: value
            for key, value in state_dict.items()
            if not key.startswith(prefix) or int(key[len(prefix) :].split(".")[0]) <= last
        }
        own = {k: v for k, v in self.state_dict().items() if k.startswith(prefix)}
        return own | matched

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Before the first step of a resumed run its generators are still those of the checkpoint.
        mine = self._rng or rng_state()
        states: list[Any] = [mine]
        if self.trainer.world_size > 1:
            states = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(states, mine)
        checkpoint["flexgen"] = {
            "counters": self.counters.state_dict(),
            "rng": states,
            "losses": {name: torch.stack(v) for name, v in self._losses.items() if v},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state, world_size = checkpoint["flexgen"], self.trainer.world_size
        if len(state["rng"]) != world_size:
            raise ValueError(
                f"the checkpoint was written by {len(state['rng'])} processes, and {world_size} "
                f"cannot continue it exactly; set `trainer.devices={len(state['rng'])}`"
            )
        checkpoint["state_dict"] = self.match_stages(checkpoint["state_dict"])
        self.counters.load_state_dict(state["counters"])
        self._losses = {name: list(v.unbind()) for name, v in state["losses"].items()}
        self._rng = state["rng"][self.trainer.global_rank]

    def on_train_start(self) -> None:
        # Last of all that happens before the first batch: starting up draws numbers too.
        if self._rng is not None:
            set_rng_state(self._rng)
            self._rng = None
        elif rank := self.trainer.global_rank:
            # Seeded alike to build the same weights, all processes would draw the same codes.
            torch.manual_seed(torch.initial_seed() + rank)
