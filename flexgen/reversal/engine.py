"""`reverse`: codes of data under any generator."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from flexgen.reversal.descent import OPTIMIZERS, Descent
from flexgen.reversal.losses import LOSSES
from flexgen.reversal.modes import Generator, frozen
from flexgen.reversal.starts import normal_codes

# Below some eight rows CPU kernels sum in another order; see "Exactness" in `reverse`.
_ROWS = 16


@dataclass(frozen=True)
class Reversal:
    """Codes of n samples, with what became of each.

    Attributes:
        z: codes, `(n, *latent_shape)`.
        x_hat: their reconstructions G(z), `(n, *shape)`.
        loss: reconstruction loss of each, summed over the elements of a sample, `(n,)`; without
            regulariser. Not finite only if the starting code already gave no finite loss.
        steps: updates that each code took, `(n,)`.
        converged: whether each met `tolerance` within the steps, `(n,)`. A sample that is not
            converged but took fewer steps than asked has met a loss or a gradient that is not
            finite; its code is the best that it had before.
        history: if asked for, the loss before each update, `(steps, n)`; `loss` is what follows.
    """

    z: Tensor
    x_hat: Tensor
    loss: Tensor
    steps: Tensor
    converged: Tensor
    history: Tensor | None = None


def reverse(
    generator: Generator,
    x: Tensor,
    *,
    latent_shape: int | Sequence[int],
    loss: Literal["mse", "bce"] = "mse",
    method: Literal["auto", "adam", "rmsprop", "gd"] = "auto",
    lr: float = 0.05,
    steps: int = 300,
    init: Literal["normal"] | Tensor = "normal",
    init_scale: float = 1e-4,
    constraint: Literal["clip", "moments"] | None = None,
    bounds: tuple[float, float] | None = None,
    moments: tuple[float, float] = (0.0, 1.0),
    constraint_weight: float = 1.0,
    norm: Literal["eval", "batch"] = "eval",
    batch_size: int = 256,
    tolerance: float = 1e-3,
    index: Tensor | None = None,
    seed: int = 0,
    history: bool = False,
    progress: bool = False,
) -> Reversal:
    """Codes z whose data G(z) come nearest to x, found by descent on z.

    z ← z − η ∇_z ℓ(G(z), x), for each sample on its own loss, from z ~ N(0, init_scale²).

    **Exactness.** Samples share a batch for speed alone: losses are summed, never averaged, the
    optimizer's state is per element, a starting code depends on (seed, index) alone, and samples
    that have finished stay in the batch untouched. So a code, its loss and its steps are those that
    the sample has when reversed alone, up to the generator's own arithmetic. Batches are padded
    (to a multiple of 16 samples on the CPU, to `batch_size` elsewhere) so that its kernels are the
    same; on the CPU every bit is then the same whatever the companions, their order and the batch
    size, for the generators of `flexgen.networks` with torch's MKL. Its products with 5 to 11
    columns are the exception, a latent size of 10 for one (4 and 8 are not): there a sum rounds
    differently by position in the batch, 1e-7 a step, which a code that the loss does not hold may
    amplify to 1e-2. `norm="batch"` and `constraint="moments"` do tie a code to its batch; there
    batches are interleaved (x[0::k], x[1::k], …), so that data sorted by class still make mixed
    batches.

    Args:
        generator: codes to data; a module or any callable. A module is held in eval mode (see
            `norm`), its parameters collect no gradient, and its state is restored afterwards.
        x: data, `(n, *shape)`, finite, in the generator's output range. It may lie on another
            device than the generator: batches go to the generator, results come back to x.
        latent_shape: shape of one code; an int is the size of a vector.
        loss: "mse", half the squared error ½‖G(z) − x‖², or "bce", the binary cross-entropy (x and
            G(z) in [0, 1]); summed over the elements of a sample, in nats for "bce".
        method: "gd", "rmsprop" or "adam", torch's with their default constants. "auto" is "adam".
        lr: step size η.
        steps: updates at most.
        init: "normal", or starting codes `(n, *latent_shape)`, such as draws from the prior.
        init_scale: standard deviation of the normal start.
        constraint: "clip" projects codes onto `bounds` after each step; "moments" adds
            γ [(μ − μ̂)² + (σ − σ̂)²] to each sample's loss, with μ̂ and σ̂ the mean and standard
            deviation of all code elements of its batch. The regulariser does nothing beside a loss
            summed over hundreds of pixels, so with it the loss that is minimised (not the one
            reported) is the mean over a sample's elements.
        bounds: (low, high) of the prior's support, for "clip" alone.
        moments: (μ, σ) of the prior, for "moments" alone.
        constraint_weight: γ, for "moments" alone.
        norm: "eval" uses the running statistics of batch norm. "batch" uses those of each batch, as
            a network whose statistics were never tracked needs; then a code depends on the samples
            beside it, and the batch should be large and mixed. Running statistics do not change.
        batch_size: samples at a time; bounds the memory.
        tolerance: a sample has converged when the lowest objective it has reached has fallen by no
            more than this share of itself in 50 steps (a very slow descent passes for one), or to
            the square of this share of where it started (for "mse" the distance ‖G(z) − x‖ has then
            fallen to this share). Its code is frozen where the objective was lowest. 0 takes all
            steps with every sample, as the papers do, and calls none converged.
        index: index of each sample in its data set, `(n,)`, which with the seed sets its normal
            start; 0, 1, …, n − 1 by default. Give it to reverse a part of a set as in the whole.
        seed: seed of the normal start, not negative. The global generator is not touched.
        history: whether to keep the loss of every step.
        progress: whether to show a progress bar, on standard error.

    Returns:
        The codes after the last step, as in the papers (the best seen of a sample that converged
        or met a value that is not finite), and what became of each.

    Raises:
        ValueError: for an option out of its range, data that are empty or not finite, shapes that
            do not fit, values outside [0, 1] under "bce", or a module whose batch norm has no
            running statistics under `norm="eval"`.
        RuntimeError: inside `torch.inference_mode`, where no gradient can be had.

    Source: Kilcher et al., 2017, Algorithm 1, eq. 4 and appendix E (lr, init_scale); Creswell &
        Bharath, 2016, Algorithm 1, eq. 2 to 5. Departures: the cross-entropy and the regulariser's
        signs as their Algorithm 1 has them, not eq. 1 and 5; the default optimizer is Adam.

    Example:
        >>> z = torch.tensor([[0.3, -1.2], [2.0, 0.5]])
        >>> generator = lambda z: torch.cat([z, z.sin()], dim=1)
        >>> found = reverse(generator, generator(z), latent_shape=2)
        >>> torch.allclose(found.z, z, atol=0.01)
        True
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "`reverse` needs gradients, which torch.inference_mode rules out; call it outside, or "
            "build the trainer with Trainer(inference_mode=False)"
        )
    _one_of("loss", loss, LOSSES)
    _one_of("method", method, ("auto", *OPTIMIZERS))
    _one_of("constraint", constraint, (None, "clip", "moments"))
    _one_of("norm", norm, ("eval", "batch"))
    for name, value, least in (
        ("steps", steps, 0),
        ("batch_size", batch_size, 1),
        ("init_scale", init_scale, 0),
        ("constraint_weight", constraint_weight, 0),
        ("tolerance", tolerance, 0),
        ("seed", seed, 0),
    ):
        if not value >= least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}")
    if not 0 < lr < math.inf:
        raise ValueError(f"`lr` must be positive and finite, got {lr}")
    if (constraint == "clip") != (bounds is not None):
        raise ValueError(
            f"`bounds` go with constraint='clip' and only with it, got bounds={bounds} and "
            f"constraint={constraint!r}; pass bounds=prior.support to clip, bounds=None otherwise"
        )
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` must be (low, high) with low < high, got {bounds}")
    shape = (latent_shape,) if isinstance(latent_shape, int) else tuple(latent_shape)
    _check_data(x, unit=loss == "bce")
    start = _start(init, init_scale, index, seed, len(x), shape)

    descent = Descent(
        loss=LOSSES[loss],
        method="adam" if method == "auto" else method,
        lr=lr,
        steps=steps,
        bounds=bounds,
        moments=moments if constraint == "moments" else None,
        constraint_weight=constraint_weight,
        tolerance=tolerance,
        history=history,
    )
    device, dtype = _home(generator, x)
    tied = norm == "batch" or constraint == "moments"
    if norm == "batch" and len(x) < 2:
        raise ValueError("`norm='batch'` needs at least 2 samples to share statistics, got 1")

    def generate(z: Tensor) -> Tensor:
        x_hat = generator(z)
        if x_hat.shape != (len(z), *x.shape[1:]):
            raise ValueError(
                f"`x` must have the generator's output shape {tuple(x_hat.shape[1:])} for codes of "
                f"`latent_shape` {shape}, got {tuple(x.shape[1:])}; reverse data of the size that "
                "the generator was trained on"
            )
        return x_hat

    parts: list[dict[str, Tensor]] = []
    places: list[Tensor] = []
    # The caller's autocast would round the generator's pass to 16 bits.
    with (
        frozen(generator, norm),
        torch.autocast(device.type, enabled=False),
        _bar(len(x), steps, progress) as bar,
    ):
        for place in _batches(len(x), batch_size, tied):
            padded = place if tied else _pad(place, batch_size, device)
            x_part = x[padded.to(x.device)].to(device, dtype)
            z_part = start[padded.to(start.device)].to(device, dtype)
            if not parts and loss == "bce":
                with torch.no_grad():
                    _check_unit("the generator's output", generate(z_part))
            part = descent.run(generate, x_part, z_part, bar(len(place)))
            parts.append({key: value[: len(place)].to(x.device) for key, value in part.items()})
            places.append(place)
    order = torch.cat(places).argsort().to(x.device)
    fields = {key: torch.cat([part[key] for part in parts])[order] for key in parts[0]}
    if history:
        fields["history"] = fields["history"].T
    return Reversal(**fields)


def _one_of(name: str, value: object, known: Collection[object]) -> None:
    if value not in known:
        options = ", ".join(repr(option) for option in known)
        raise ValueError(f"`{name}` must be one of {options}, got {value!r}")


def _check_data(x: Tensor, unit: bool) -> None:
    if x.dim() < 2 or not len(x):
        raise ValueError(
            f"`x` must be a batch of at least one sample, (n, *shape), got {tuple(x.shape)}; "
            "a single sample is x[None]"
        )
    if not x.is_floating_point():
        raise ValueError(f"`x` must be floating point, got {x.dtype}; scale it to the data's range")
    if not x.isfinite().all():
        raise ValueError(
            "`x` must be finite, got NaN or infinity in "
            f"{int((~x.flatten(1).isfinite().all(1)).sum())} of {len(x)} samples; leave them out"
        )
    if unit:
        _check_unit("`x`", x)


def _check_unit(name: str, x: Tensor) -> None:
    if ((x < 0) | (x > 1)).any():
        raise ValueError(
            f"{name} must lie in [0, 1] under loss='bce', got values from {float(x.min()):.4g} to "
            f"{float(x.max()):.4g}; train with `data.range=[0,1]` or use loss='mse'"
        )


def _start(
    init: str | Tensor,
    scale: float,
    index: Tensor | None,
    seed: int,
    num_samples: int,
    latent_shape: tuple[int, ...],
) -> Tensor:
    if isinstance(init, Tensor):
        if init.shape != (num_samples, *latent_shape) or not init.isfinite().all():
            raise ValueError(
                f"`init` must be 'normal' or finite codes of shape {(num_samples, *latent_shape)}, "
                f"got {tuple(init.shape)}; give one code for each sample"
            )
        return init.detach()
    _one_of("init", init, ("normal",))
    index = torch.arange(num_samples) if index is None else index
    if index.shape != (num_samples,) or index.is_floating_point() or (index < 0).any():
        raise ValueError(
            f"`index` must hold a whole number of at least 0 for each of {num_samples} samples, "
            f"got {index.dtype} of shape {tuple(index.shape)}"
        )
    return scale * normal_codes(index, latent_shape, seed)


def _home(generator: Generator, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where and in what precision the generator works; x's own for a plain callable."""
    weights = generator.parameters() if isinstance(generator, nn.Module) else iter(())
    weight = next((weight for weight in weights if weight.is_floating_point()), x)
    return weight.device, weight.dtype


def _batches(num_samples: int, batch_size: int, tied: bool) -> list[Tensor]:
    """Indices of the samples of each batch: runs, or interleaved and of one size if tied."""
    everything = torch.arange(num_samples)
    if not tied:
        return list(everything.split(batch_size))
    count = -(-num_samples // batch_size)
    return [everything[i::count] for i in range(count)]


def _pad(place: Tensor, batch_size: int, device: torch.device) -> Tensor:
    rows = batch_size if device.type != "cpu" else -(-len(place) // _ROWS) * _ROWS
    return torch.cat([place, place[:1].expand(max(rows - len(place), 0))])


@contextmanager
def _bar(
    num_samples: int, steps: int, show: bool
) -> Iterator[Callable[[int], Callable[[int, Tensor], None]]]:
    """A progress bar: called with the size of a batch, it gives what to tell its steps to."""
    columns = (
        TextColumn("reverse"),
        BarColumn(),
        TextColumn("{task.fields[samples]}/{task.fields[all]} samples, loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("", total=num_samples, samples=0, all=num_samples, loss="-")
        done = 0

        def batch(size: int) -> Callable[[int, Tensor], None]:
            nonlocal done
            before, done = done, done + size

            def tell(step: int, loss: Tensor) -> None:
                if show:  # reading the loss makes the device wait
                    share = before + size * step / max(steps, 1)
                    mean = f"{float(loss[:size].mean()):.4g}"
                    bar.update(task, completed=share, samples=int(share), loss=mean)

            return tell

        yield batch
        bar.update(task, completed=num_samples, samples=num_samples)
