"""What every family shares: the loop, its counters, the prior's stages, exact resumption."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from flexgen.priors import Staged
from flexgen.priors.staged import event_dim
from flexgen.training import (
    Counters,
    Schedule,
    copy_from_zero,
    gather_from_all,
    rng_state,
    seed_of_rank,
    set_rng_state,
)

__all__ = ["Generative"]

_SECONDS_A_CALL = 0.25
_UPDATES_A_CALL = 64


class Generative(pl.LightningModule):
    """A generator of data from codes with a prior, trained in updates of FlexGen's own count.

    A call of `training_step` makes many updates, up to the next step that `schedule` names, so
    that Lightning's bookkeeping is paid once for all; it is handed a stream of batches, not a
    batch. A family says what an update is in `_update`, and what makes data in `sampler`.

    Args:
        prior: p(z); it becomes stage 0 of a :class:`~flexgen.priors.Staged`.
        gradient_clip: largest norm of the gradient of what one optimizer trains; None: no clipping.
        accumulate: batches whose gradients one optimizer step averages.
        log_every: generator steps between two rows of losses.

    Attributes:
        counters: the steps so far.
        schedule: where callbacks register the steps at which they must act.
        stop_requested: set it, from a signal handler say, to stop before the next step.
        last_losses: the means that were logged last.

    Raises:
        ValueError: if a size is out of range.
    """

    def __init__(
        self,
        prior: nn.Module,
        *,
        gradient_clip: float | None,
        accumulate: int,
        log_every: int,
    ) -> None:
        super().__init__()
        for name, count in (("accumulate", accumulate), ("log_every", log_every)):
            at_least_one(name, count)
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"`gradient_clip` must be above 0, got {gradient_clip}; or null")
        self.automatic_optimization = False
        self.prior = prior if isinstance(prior, Staged) else Staged([prior])
        self.latent_dim = event_dim(prior)
        self.gradient_clip = gradient_clip
        self.accumulate, self.log_every = accumulate, log_every
        self.counters, self.schedule = Counters(), Schedule()
        self.schedule.register(log_every)
        self.stop_requested = False
        self._stop_agreed = False
        self.last_losses: dict[str, float] = {}
        self._losses: dict[str, list[Tensor]] = {}
        self._rng: dict[str, Any] | None = None
        self._statistics: list[Tensor] = []

    @property
    def sampler(self) -> nn.Module:
        """The network to sample, reverse and score with, codes `(n, latent_dim)` to data."""
        raise NotImplementedError

    def attach(self, prior: nn.Module) -> None:
        """Give a prior what it needs of this model: a critic's score, or a posterior.

        Raises:
            ValueError: if it needs what this model does not have.
        """
        for module in prior.modules():
            if hasattr(module, "attach"):
                raise ValueError(
                    f"a {type(module).__name__} prior draws by a critic's score, and this model "
                    "has no critic; use it on an adversarial run, or another prior"
                )
            self.attach_posterior(module)

    def attach_posterior(self, prior: nn.Module) -> None:
        """Give a prior this model's posterior, if it is made of one.

        Raises:
            ValueError: if it is, and there is none.
        """
        if hasattr(prior, "attach_posterior"):
            raise ValueError(
                f"a {type(prior).__name__} prior is made of a VAE's posteriors, and this model has "
                "no posterior; use prior=mixture or kernel_density, or model=vae"
            )

    def check_fit(
        self, shape: tuple[int, ...], data_range: tuple[float, float] | None = None
    ) -> None:
        """Run two codes and two data through the networks.

        Raises:
            ValueError: if prior, networks and data of `shape` in `data_range` do not fit each
                other.
        """
        raise NotImplementedError

    def check_prior(self, prior: nn.Module) -> None:
        """Refuse a prior that this model could not train with; a family that needs more says so.

        Raises:
            ValueError: if it could not.
        """

    def _update(self, stream: Iterator[Tensor], *optimizers: Any) -> None:
        """One generator step, or what is left of one that was stopped half-way."""
        raise NotImplementedError

    def _batches_a_step(self, name: str) -> int:
        """How many values of the loss `name` one generator step records."""
        return self.accumulate

    def encode(self, x: Tensor) -> Tensor | None:
        """A code of each datum, `(n, latent_dim)`, by a posterior of this model's own.

        None where it has none: then codes are found by reversal.
        """
        return None

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

    def training_step(self, stream: Iterator[Tensor], batch_idx: int) -> None:
        """Run updates up to the next scheduled step; return earlier now and then to be watched."""
        optimizers: Any = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizers, list):
            optimizers = [optimizers]
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
        if self._statistics:
            copy_from_zero(self._statistics)

    def _record(self, name: str, loss: Tensor) -> None:
        self._losses.setdefault(name, []).append(loss.detach())

    def _check_losses(self) -> None:
        """Stop all processes at a loss that is not finite in one, before anything is saved.

        Raises:
            FloatingPointError: naming the term and the step at which it first occurred.
        """
        faults = [fault for fault in gather_from_all(self._fault()) if fault is not None]
        if faults:
            step, what = min(faults)
            raise FloatingPointError(
                f"{what} at generator step {step}; lower the step sizes, or set "
                "`model.gradient_clip=1`"
            )

    def _fault(self) -> tuple[int, str] | None:
        """The first step with a loss that is not finite, or this one with a weight; and which."""
        faults = []
        for name, losses in self._losses.items():
            finite = torch.stack(losses).isfinite()
            if not finite.all():
                first = int(finite.int().argmin())
                back = (len(losses) - 1 - first) // self._batches_a_step(name)
                what = f"{name} is {float(losses[first])}"
                faults.append((self.counters.generator_steps - back, what))
        if not faults:
            # A gradient can overflow where the loss did not.
            names, weights = zip(*self.named_parameters(), strict=True)
            finite = torch.stack([weight.isfinite().all() for weight in weights])
            if not finite.all():
                first = names[int(finite.int().argmin())]
                faults.append((self.counters.generator_steps, f"{first} is not finite"))
        return min(faults, key=lambda fault: fault[0], default=None)

    def _log_losses(self) -> None:
        means = {name: float(torch.stack(v).mean()) for name, v in self._losses.items() if v}
        if means:
            if self.counters.generator_steps % self.log_every == 0:
                self._losses.clear()
            self.last_losses = means
            self.log_values(means)

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
        states = gather_from_all(mine)
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

    def _check_optimizers(self) -> None:
        """Refuse restored states of other shapes than their weights': fused kernels look at none.

        Raises:
            ValueError: naming the state.
        """
        for optimizer in self.trainer.optimizers:
            for weight, state in optimizer.state.items():
                for name, value in state.items():
                    if not isinstance(value, Tensor) or (name == "step" and value.numel() == 1):
                        continue
                    if value.shape != weight.shape:
                        raise ValueError(
                            f"the checkpoint is damaged: an optimizer's `{name}` has shape "
                            f"{tuple(value.shape)}, its weight {tuple(weight.shape)}; go on from "
                            "an earlier one with `checkpoint=…`"
                        )
                    if value.stride() != weight.stride():
                        state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def on_train_start(self) -> None:
        self._check_optimizers()
        if self.device.type == "cpu":
            # Lightning sets it when it is imported. By it every step of an Adam looks for GPUs
            # through their driver: 0.05 to 0.5 ms, and 2 µs without it.
            os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
        # Last of all that happens before the first batch: starting up draws numbers too.
        if self._rng is not None:
            set_rng_state(self._rng)
            self._rng = None
        elif rank := self.trainer.global_rank:
            # Seeded alike to build the same weights, all processes would draw the same codes.
            torch.manual_seed(seed_of_rank(torch.initial_seed(), rank))
        if self.trainer.world_size > 1:
            # Each process has seen other batches. Left apart, the running statistics would differ
            # when codes are drawn by a score or reversed, and no process but zero saves its own.
            norms = [m for m in self.modules() if isinstance(m, _BatchNorm) and m.training]
            running = [[m.running_mean, m.running_var] for m in norms]
            self._statistics = [b for pair in running for b in pair if b is not None]


def at_least_one(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}; set `model.{name}=1`")
