"""The training loop of every family: counters, schedules, losses, resumption, processes."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flexgen.checks import check_integer, check_positive
from flexgen.contracts import Batch, BatchStream, StreamSource
from flexgen.modes import restored
from flexgen.training.counters import Counters, Schedule
from flexgen.training.lightning_limits import check_trainer, count_steps, last_step
from flexgen.training.processes import copy_from_zero, gather_from_all
from flexgen.training.rng import rng_state, seed_of_rank, set_rng_state

_SECONDS_A_CALL = 0.25
_UPDATES_A_CALL = 64

DataRange = tuple[float, float] | None
MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class Loop(pl.LightningModule):
    """Trains modules in updates of FlexGen's own count; it knows no codes.

    A family says what learns, in :meth:`learners`, and what one generator step is, in
    :meth:`update`. Fed by FlexGen's data, a call of `training_step` makes many updates, up to the
    next step that `schedule` names, so that Lightning's bookkeeping is paid once for all. Fed by
    any other loader, each call takes one batch of it, and the update is made with the last batch
    that it needs.

    Args:
        optimizers: for each learner, its parameters to an optimizer, e.g. a `functools.partial` of
            Adam.
        schedulers: for each learner, its optimizer to a schedule of the step size, stepped once a
            generator step; None: constant.
        gradient_clip: largest norm of the gradient of what one optimizer trains; None: no clipping.
        accumulate: batches whose gradients one optimizer step averages.
        log_every: generator steps between two rows of losses.
        num_classes: of the labels that the networks take as context; None: they take none.

    Attributes:
        counters: the steps so far.
        schedule: where callbacks register the steps at which they must act.
        stop_requested: set it, from a signal handler say, to stop before the next step.
        last_losses: the means that were logged last.
        logged: the last generator step at which values were logged, and all that were there.

    Raises:
        ValueError: if a size is out of range.
    """

    def __init__(
        self,
        optimizers: Sequence[MakeOptimizer],
        schedulers: Sequence[MakeScheduler | None],
        *,
        gradient_clip: float | None = None,
        accumulate: int = 1,
        log_every: int = 100,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        for name, count in (("accumulate", accumulate), ("log_every", log_every)):
            check_integer(name, count, 1, f"set `model.{name}=1`")
        if num_classes is not None:
            check_integer("num_classes", num_classes)
        if gradient_clip is not None:
            check_positive("gradient_clip", gradient_clip, "null turns clipping off")
        self.automatic_optimization = False
        self._make_optimizers, self._make_schedulers = optimizers, schedulers
        self.gradient_clip, self.accumulate = gradient_clip, accumulate
        self.log_every, self.num_classes = log_every, num_classes
        self.counters, self.schedule = Counters(), Schedule()
        self.schedule.register(log_every)
        self.stop_requested = False
        self._stop_agreed = False
        self.last_losses: dict[str, float] = {}
        self.logged: tuple[int, dict[str, float]] = (-1, {})
        self._losses: dict[str, list[Tensor]] = {}
        self._rng: dict[str, Any] | None = None
        self._statistics: list[Tensor] = []
        self._waiting: list[Batch] = []

    def learners(self) -> tuple[nn.Module, ...]:
        """What each optimizer trains."""
        raise NotImplementedError

    def update(self, stream: Iterator[Batch], *optimizers: Any) -> None:
        """One generator step, or what is left of one that was stopped half-way.

        It takes its batches by :meth:`next_batch`.
        """
        raise NotImplementedError

    @property
    def batches_a_step(self) -> int:
        """How many batches the next call of :meth:`update` takes."""
        return self.accumulate

    def sample(self, n: int, context: Tensor | None = None) -> Tensor:
        """n data without gradient, everything in eval mode.

        Args:
            n: how many.
            context: of each, `(n,)`; of a conditional model without one, its classes in turn.
        """
        raise NotImplementedError

    @property
    def capabilities(self) -> frozenset[str]:
        """What a measurement can ask of this model as it is now; see `Measurement.needs`."""
        return frozenset({"samples"})

    def check_fit(self, shape: tuple[int, ...], data_range: DataRange = None) -> None:
        """Run two data of `shape` through what learns.

        Raises:
            ValueError: if the parts, or the data in `data_range`, do not fit each other.
        """
        with self.evaluating(), torch.random.fork_rng(devices=[]):
            self.try_out(shape, data_range)

    def try_out(self, shape: tuple[int, ...], data_range: DataRange = None) -> None:
        """What :meth:`check_fit` does of a family, in eval mode."""

    def check_data(self, x: Tensor) -> None:
        """Refuse training data by the values of the first batch, `(n, *shape)`.

        Raises:
            ValueError: if the parts are not of such data.
        """

    def bind_data(self, examples: Callable[[int], Tensor]) -> None:
        """Take training data for parts that are made of some: n to n of them at random."""

    def weights_in(self, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        """What of a checkpoint this model loads."""
        weights: dict[str, Tensor] = checkpoint["state_dict"]
        return weights

    def in_turn(self, n: int) -> Tensor | None:
        """The context of n data where none is given: the classes in turn, `(n,)`; or None."""
        if self.num_classes is None:
            return None
        return torch.arange(n, device=self.device) % self.num_classes

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Everything in eval mode; afterwards each part in its own mode again."""
        with restored(self):
            self.eval()
            yield

    def configure_optimizers(self) -> Any:
        self._learned = [
            [p for p in module.parameters() if p.requires_grad] for module in self.learners()
        ]
        optimizers = [make(p) for make, p in zip(self._make_optimizers, self._learned, strict=True)]
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            # Adamax keeps the betas that it was given: a checkpoint holds no list of Hydra's.
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
        # Before a schedule changes them: what a resumed run takes instead of the checkpoint's.
        self._settings = [
            [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]
        wanted = zip(self._make_schedulers, optimizers, strict=True)
        self._lr_schedulers = [make(optimizer) for make, optimizer in wanted if make is not None]
        return optimizers, self._lr_schedulers

    def configure_callbacks(self) -> list[pl.Callback]:
        # The first hook that Lightning calls: what it could not honour is refused before it starts.
        check_trainer(self.trainer)
        return []

    def on_fit_start(self) -> None:
        self.schedule.end = last_step(self.trainer, self.schedule)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, StreamSource):
            self.check_fit(tuple(data.shape), data.range)

    def next_batch(self, stream: Iterator[Batch]) -> Batch:
        """The next batch, counted; without its context if the model is not conditional."""
        batch = next(stream)
        if not self.counters.batches:
            self.check_data(batch.x)
        self.counters.batches += 1
        self.counters.images_seen += len(batch.x) * self.trainer.world_size
        return batch if self.num_classes is not None else Batch(batch.x)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Run updates up to the next scheduled step; return earlier now and then to be watched."""
        if (end := self.schedule.end) is not None and self.counters.generator_steps >= end:
            self.trainer.should_stop = True  # resumed at its end, where only measuring was left
            return
        endless = isinstance(batch, BatchStream)
        if (stream := batch if endless else self._collected(batch)) is None:
            return
        found: Any = self.optimizers(use_pl_optimizer=False)
        optimizers = found if isinstance(found, list) else [found]
        self._scaler = vars(self.trainer.precision_plugin).get("scaler")
        until = self.schedule.next_after(self.counters.generator_steps)
        # Processes must return together: they end a call by count, one alone may by the clock.
        most = _UPDATES_A_CALL if endless else 1
        last = min(until, self.counters.generator_steps + most)
        alone = self.trainer.world_size == 1
        deadline = time.monotonic() + _SECONDS_A_CALL if alone else None
        if not alone:
            asked = torch.tensor(float(self.stop_requested), device=self.device)
            self._stop_agreed = bool(self.trainer.strategy.reduce(asked, reduce_op="max"))
        while self.counters.generator_steps < last and not self.stopping():
            self.update(stream, *optimizers)
            if deadline is not None and time.monotonic() > deadline:
                break
        step, stopping = self.counters.generator_steps, self.stopping()
        if step == until or stopping:
            self._check_losses()
        if not self.counters.critic_phase and (step % self.log_every == 0 or step == end):
            self._log_losses()
        count_steps(self.trainer, step)
        if stopping or (end is not None and step >= end):
            self.trainer.should_stop = True

    def _collected(self, batch: Any) -> Iterator[Batch] | None:
        """The batches of one generator step from a loader of any kind; None: not yet enough."""
        given = Batch.of(batch, self.num_classes is not None)
        if not self.counters.batches and not self._waiting:
            self.check_fit(tuple(given.x.shape[1:]))
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return itertools.repeat(given)  # of one batch a whole step all the same
        self._waiting.append(given)
        if len(self._waiting) < self.batches_a_step:
            return None
        batches, self._waiting = iter(self._waiting), []
        return batches

    def stopping(self) -> bool:
        """Whether to stop here: alone at once, among others when all have agreed to."""
        return self.stop_requested if self.trainer.world_size == 1 else self._stop_agreed

    def accumulate_gradient(self, loss: Tensor) -> None:
        """Add the gradient of one batch's loss, of which a step takes `accumulate`."""
        self.manual_backward(loss if self.accumulate == 1 else loss / self.accumulate)

    def descend(
        self, stream: Iterator[Batch], optimizer: Optimizer, loss: Callable[..., Tensor]
    ) -> None:
        """Step the first learner's optimizer down a loss of data and context, over batches."""
        optimizer.zero_grad()
        for _ in range(self.accumulate):
            self.accumulate_gradient(loss(*self.next_batch(stream)))
        self.step_optimizer(optimizer, 0)

    def step_optimizer(self, optimizer: Optimizer, learner: int) -> None:
        """Clip the gradient of a learner and step its optimizer.

        It is torch's optimizer itself: Lightning's wrapper updates the loss scale each time.
        """
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if self.gradient_clip is not None:
            clip_grad_norm_(self._learned[learner], self.gradient_clip)
        if self._scaler is not None:
            self._scaler.step(optimizer)
        else:
            optimizer.step()
        if self._statistics:
            copy_from_zero(self._statistics)

    def finish_step(self) -> None:
        """Count a generator step, update the loss scale and step the schedules."""
        if self._scaler is not None:
            self._scaler.update()
        self.counters.generator_steps += 1
        for scheduler in self._lr_schedulers:
            scheduler.step()

    def record(self, name: str, loss: Tensor) -> None:
        """Add a value to the mean that is logged next under `name`."""
        self._losses.setdefault(name, []).append(loss.detach())

    def _check_losses(self) -> None:
        """Stop all processes at a loss that is not finite in one, before anything is saved."""
        faults = [fault for fault in gather_from_all(self._fault()) if fault is not None]
        if faults:
            step, what = min(faults)
            raise FloatingPointError(
                f"{what} at generator step {step}; lower the step sizes, or set "
                "`model.gradient_clip=1`"
            )

    def _fault(self) -> tuple[int, str] | None:
        """The first step with a loss that is not finite, or this one with a weight; and which."""
        step, faults = self.counters.generator_steps, []
        for name, losses in self._losses.items():
            finite = torch.stack(losses).isfinite()
            if not finite.all():
                first = int(finite.int().argmin())
                back = (len(losses) - 1 - first) // self.records_a_step(name)
                faults.append((step - back, f"{name} is {float(losses[first])}"))
        if not faults:
            # A gradient can overflow where the loss did not.
            names, weights = zip(*self.named_parameters(), strict=True)
            finite = torch.stack([weight.isfinite().all() for weight in weights])
            if not finite.all():
                faults.append((step, f"{names[int(finite.int().argmin())]} is not finite"))
        return min(faults, key=lambda fault: fault[0], default=None)

    def records_a_step(self, name: str) -> int:
        """How many values one generator step records under `name`."""
        return self.accumulate

    def _log_losses(self) -> None:
        if means := self._means():
            if self.counters.generator_steps % self.log_every == 0:
                self._losses.clear()
            self.last_losses = means
            self.log_values(means)

    def _means(self) -> dict[str, float]:
        return {name: float(torch.stack(v).mean()) for name, v in self._losses.items() if v}

    def on_train_epoch_end(self) -> None:
        # An epoch of few batches ends before the first row of losses; Lightning's callbacks that
        # watch a value look now.
        self._show(self._means())

    def _show(self, values: dict[str, float]) -> None:
        """Have Lightning's own callbacks see values by their names."""
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in values.items()})

    def log_values(self, values: dict[str, float]) -> None:
        """Log values with every step counter, at the generator step.

        `self.log` costs 300 µs a scalar and step and counts in Lightning's own steps.
        """
        self._show(values)
        step = self.counters.generator_steps
        before = self.logged[1] if self.logged[0] == step else {}
        self.logged = step, before | values
        for logger in self.loggers:
            logger.log_metrics({**self.counters.axes(), **values}, step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["flexgen"] = {
            "counters": self.counters.state_dict(),
            # Before the first step of a resumed run its generators are still the checkpoint's.
            "rng": gather_from_all(self._rng or rng_state()),
            "losses": {name: torch.stack(v) for name, v in self._losses.items() if v},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state, world_size = checkpoint["flexgen"], self.trainer.world_size
        if len(state["rng"]) != world_size:
            raise ValueError(
                f"the checkpoint was written by {len(state['rng'])} processes, and {world_size} "
                f"cannot continue it exactly; set `trainer.devices={len(state['rng'])}`"
            )
        self.counters.load_state_dict(state["counters"])
        self._losses = {name: list(v.unbind()) for name, v in state["losses"].items()}
        self._rng = state["rng"][self.trainer.global_rank]

    def _check_optimizers(self) -> None:
        """Refuse restored states of other shapes than their weights': fused kernels look not."""
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

    def _apply_settings(self) -> None:
        """Step sizes and the like are the configuration's, where no schedule changes them."""
        scheduled = [scheduler.optimizer for scheduler in self._lr_schedulers]
        for optimizer, settings in zip(self.trainer.optimizers, self._settings, strict=True):
            if not any(optimizer is other for other in scheduled):
                for group, values in zip(optimizer.param_groups, settings, strict=True):
                    group.update(values)

    def on_train_start(self) -> None:
        self._check_optimizers()
        self._apply_settings()
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
