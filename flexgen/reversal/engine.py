"""`reverse`: codes of data under any generator."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from flexgen.checks import check_integer, check_not_negative, check_one_of, check_positive
from flexgen.reversal.checks import check_data, check_loss, check_mask, check_unit
from flexgen.reversal.descent import OPTIMIZERS, Descent
from flexgen.reversal.encoder import refined
from flexgen.reversal.freezing import Generator, frozen, home
from flexgen.reversal.lbfgs import LBFGS
from flexgen.reversal.losses import (
    Term,
    half_squared_error,
    in_unit_range,
    loss_of,
    normal_penalty,
    of_known,
)
from flexgen.reversal.marquardt import LevenbergMarquardt
from flexgen.reversal.passes import OfSamples, Passes, Work, fill
from flexgen.reversal.preparation import Contexts, check_context, checked, faster, is_noisy, tried
from flexgen.reversal.progress import bar
from flexgen.reversal.starts import Bank, Starts


@dataclass(frozen=True)
class Reversal(OfSamples):
    """Codes of n samples, with what became of each.

    Attributes:
        z: codes, `(n, *latent_shape)`.
        x_hat: their reconstructions G(z), `(n, *shape)`.
        loss: reconstruction loss of each, summed over the elements of a sample, `(n,)`; without
            regulariser. Not finite only if the starting code already gave no finite loss.
        steps: updates that each code took, `(n,)`; for "lbfgs" evaluations, over all its starts
            and the refinement.
        converged: whether each met `tolerance` within the steps, `(n,)`; none under a generator
            that makes other data of one code each time. A sample that is not
            converged but took fewer steps than asked has met a loss or a gradient that is not
            finite; its code is the best that it had before.
        history: if asked for, the loss before each update, `(steps, n)`; `loss` is what follows.
        how: what was done, in words, as `method="auto"` chose it.
    """

    z: Tensor
    x_hat: Tensor
    loss: Tensor
    steps: Tensor
    converged: Tensor
    history: Tensor | None = None
    how: str = ""


def reverse(
    generator: Generator,
    x: Tensor,
    *,
    latent_shape: int | Sequence[int],
    context: Tensor | None = None,
    loss: Term | Sequence[Term] = "mse",
    mask: Tensor | None = None,
    method: Literal["auto", "lbfgs", "adam", "rmsprop", "gd"] = "auto",
    lr: float = 0.05,
    steps: int | None = None,
    init: Literal["auto", "normal", "bank"] | Tensor | Callable[[Tensor], Tensor] = "auto",
    init_scale: float = 1e-4,
    bank: int | Tensor = 2048,
    starts: int | None = None,
    precision: Literal["auto", "float32", "plain"] = "auto",
    constraint: Literal["clip", "moments", "map"] | None = None,
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
    watch: Callable[[Tensor], None] | None = None,
) -> Reversal:
    """Codes z whose data G(z) come nearest to x: for each sample a minimum of ℓ(G(z), x) over z.

    **"lbfgs"** descends by BFGS with a line search per sample, of limited memory where a code has
    more than 64 numbers, from the nearest of many G(z) or from an encoder's guess. Each sample
    takes two starts, and up to `starts` until its two best ends agree within 3 % in loss; the best
    end is refined. Passes are those of a faster copy of the generator, whatever that is: what it
    computes is recorded, batch norm folded into the weights, and bfloat16 taken until the
    refinement, where the processor has it and a pass is 10⁶ operations or more. A copy that is not
    the generator's function is not used, and `how` says why. What is returned is computed by the
    generator itself. Where that is a few small dense layers, the loss is "mse", and nothing holds
    the codes, all starts go side by side by Levenberg-Marquardt, which needs fewer and dearer
    steps, and nothing is refined. **"auto"** is the same search cut short: two starts of 44
    evaluations, which most often come within a few percent of its loss in less than half the time.

    **"gd", "rmsprop", "adam"** are the papers' loop, z ← z − η ∇_z ℓ(G(z), x) from
    z ~ N(0, init_scale²), by torch's optimizers with their default constants and the plain pass.

    **Exactness.** Samples share a batch for speed alone: losses are summed, never averaged, all
    state is per sample, a starting code depends on (seed, index) or on the sample, and samples that
    have finished are not touched any more. So a code, its loss and its steps are those that the
    sample has when reversed alone, up to the generator's own arithmetic. Batches are padded
    (to a multiple of 16 samples on the CPU, to `batch_size` or a power of two elsewhere) so that
    its kernels are the same; on the CPU every bit is then the same whatever the companions, their
    order and the batch size, for the generators of `flexgen.networks` with torch's MKL. Its
    products with 5 to 11 columns are the exception, a latent size of 10 for one, in the papers'
    loop alone (the faster copy widens them): there a sum rounds differently by position in the
    batch, 1e-7 a step, which a code that the loss does not hold may amplify to 1e-2.
    `norm="batch"` and `constraint="moments"` do tie a code to its batch; there batches are
    interleaved (x[0::k], x[1::k], …), so that data sorted by class still make mixed batches.

    Args:
        generator: codes to data; a module or any callable. A module is held in eval mode (see
            `norm`), its parameters collect no gradient, and its state is restored afterwards.
        x: data, `(n, *shape)`, finite, in the generator's output range. It may lie on another
            device than the generator: batches go to the generator, results come back to x.
        latent_shape: shape of one code; an int is the size of a vector.
        context: what the generator is called with beside the codes, of each sample: labels `(n,)`,
            or features `(n, c)`. A bank is made for each different one, of which there may be 64.
        loss: "mse", half the squared error ½‖G(z) − x‖², or "bce", the binary cross-entropy (x and
            G(z) in [0, 1]), in nats; "l1" or "huber"; all summed over the elements of a sample.
            "lpips", features' distance ("perceptual"), weighted terms and several scales:
            `[{name: l1}, {name: mse, weight: 0.1, scales: 3}]`, see `flexgen.reversal.losses`; or
            any function of G(z) and x, `(batch, *shape)` both, to losses `(batch,)`.
        mask: what of x is known: true (or 1) there, `(*shape)` or `(n, *shape)`, or broadcast to
            it. The loss is of these elements alone, and G(z) fills in the others.
        method: see above. "auto" is a short "lbfgs", but "adam" where codes are tied to their batch
            or the history is asked for.
        lr: step size η of the papers' loop.
        steps: updates at most, 300 by default; for "lbfgs" evaluations of a start and of the
            refinement, 100 by default, 44 for "auto".
        init: "normal"; "bank", of the four codes of the `bank` whose data lie nearest to the sample
            their mean and the nearest, of the next four the same, and so on; a
            function from data to codes, such as :func:`~flexgen.reversal.train_encoder` gives
            (further starts are the bank's), made better by three rounds of z + E(x) − E(G(z)) for
            "lbfgs"; or starting codes, `(n, *latent_shape)` or
            `(n, count, *latent_shape)`. "auto" is "bank" for "lbfgs", "normal" else.
        init_scale: standard deviation of the normal start.
        bank: number of codes in the bank, drawn from N(0, I), or uniformly within `bounds`; or
            codes `(size, *latent_shape)`, such as draws from the prior. No more of them are taken
            than make 2²⁶ elements of data (256 MiB), but always 64.
        starts: starts of a sample at most, for "lbfgs" alone; 4 by default, 2 for "auto".
        precision: "auto" as described, "float32" for a faster copy in the generator's own precision
            only, "plain" for the generator's own pass; for "lbfgs" alone.
        constraint: "clip" projects codes onto `bounds` after each step; "moments" adds
            γ [(μ − μ̂)² + (σ − σ̂)²] to each sample's loss, with μ̂ and σ̂ the mean and standard
            deviation of all code elements of its batch. The regulariser does nothing beside a loss
            summed over hundreds of pixels, so with it the loss that is minimised (not the one
            reported) is the mean over a sample's elements. "map" adds γ ½‖(z − μ)/σ‖² to each
            sample's loss, γ times −log N(z; μ, σ²I): with "mse" and γ = s² the code is the maximum
            of p(z|x) under noise of standard deviation s on x.
        bounds: (low, high) of the prior's support, for "clip" alone.
        moments: (μ, σ) of the prior, for "moments" and "map".
        constraint_weight: γ, for "moments" and "map".
        norm: "eval" uses the running statistics of batch norm. "batch" uses those of each batch, as
            a network whose statistics were never tracked needs; then a code depends on the samples
            beside it, and the batch should be large and mixed. Running statistics do not change.
        batch_size: samples at a time; bounds the memory.
        tolerance: a sample has converged when the lowest objective it has reached has fallen by no
            more than this share of itself in 50 steps (a very slow descent passes for one), or to
            the square of this share of where it started (for "mse" the distance ‖G(z) − x‖ has then
            fallen to this share). Its code is frozen where the objective was lowest. 0 takes all
            steps with every sample, as the papers do, and calls none converged. For "lbfgs" it is
            the share by which the loss falls in 8 evaluations, fifty times that before the
            refinement; the other rule is the same.
        index: index of each sample in its data set, `(n,)`, which with the seed sets its normal
            start; 0, 1, …, n − 1 by default. Give it to reverse a part of a set as in the whole.
        seed: seed of the normal start and of the bank, not negative. The global generator is not
            touched.
        history: whether to keep the loss of every step; not for "lbfgs".
        progress: whether to show what was chosen and a progress bar, on standard error.
        watch: called now and then with the codes of the batch in work, its real samples alone:
            for "lbfgs" the best so far.

    Returns:
        For "lbfgs" the best codes; else the codes after the last step, as in the papers (the best
        seen of a sample that converged or met a value that is not finite). And what became of each.

    Raises:
        ValueError: for an option out of its range, data that are empty or not finite, shapes that
            do not fit, values outside [0, 1] under "bce", or a module whose batch norm has no
            running statistics under `norm="eval"`.
        RuntimeError: inside `torch.inference_mode`, where no gradient can be had.

    Memory: beside the generator's own, activations of one pass and its gradient over the samples of
        a batch that are not done, O(active set), for "lbfgs" a matrix of at most 64 × 64 numbers or
        20 codes for each of them, and the bank.

    Source: Kilcher et al., 2017, Algorithm 1, eq. 4 and appendix E (lr, init_scale); Creswell &
        Bharath, 2016, Algorithm 1, eq. 2 to 5. Departures: the cross-entropy and the regulariser's
        signs as their Algorithm 1 has them, not eq. 1 and 5; "auto" is not their optimizer.

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
    measure, unit = loss_of(loss), in_unit_range(loss)
    check_one_of("method", method, ("auto", "lbfgs", *OPTIMIZERS))
    check_one_of("constraint", constraint, (None, "clip", "moments", "map"))
    check_one_of("norm", norm, ("eval", "batch"))
    check_one_of("precision", precision, ("auto", "float32", "plain"))
    tied, quick = norm == "batch" or constraint == "moments", method == "auto"
    if method == "auto":
        method = "adam" if tied or history else "lbfgs"
    searching = method == "lbfgs"
    steps = ((44 if quick else 100) if searching else 300) if steps is None else steps
    starts = (2 if quick else 4) if starts is None else starts
    check_integer("steps", steps, int(searching))
    check_integer("batch_size", batch_size)
    check_integer("seed", seed, 0)
    check_integer("starts", starts)
    check_integer("bank", 1 if isinstance(bank, Tensor) else bank)
    check_not_negative("init_scale", init_scale)
    check_not_negative("constraint_weight", constraint_weight)
    check_not_negative("tolerance", tolerance)
    check_positive("lr", lr)
    if (constraint == "clip") != (bounds is not None):
        raise ValueError(
            f"`bounds` go with constraint='clip' and only with it, got bounds={bounds} and "
            f"constraint={constraint!r}; pass bounds=prior.support to clip, bounds=None otherwise"
        )
    if bounds is not None and not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise ValueError(f"`bounds` must be finite, (low, high) with low < high, got {bounds}")
    if searching and (tied or history):
        raise ValueError(
            "`method='lbfgs'` goes with neither norm='batch' nor constraint='moments', which tie "
            "the samples of a batch, nor with history=True; use method='adam'"
        )
    shape = (latent_shape,) if isinstance(latent_shape, int) else tuple(latent_shape)
    if not shape or not all(int(size) == size and size > 0 for size in shape):
        raise ValueError(
            f"`latent_shape` must be a size or sizes of at least 1, got {latent_shape}; "
            "a code that is a number is latent_shape=1"
        )
    if mask is not None:
        known = check_mask(mask, x)
        x, measure = x.masked_fill(~known, 0), partial(of_known, loss=measure)
    check_data(x, unit=unit)
    if mask is not None:
        x = x.masked_fill(~known, torch.nan)
    check_context(context, len(x))
    if norm == "batch" and len(x) < 2:
        raise ValueError("`norm='batch'` needs at least 2 samples to share statistics, got 1")
    device, weights = home(generator, x)
    dtype = torch.promote_types(weights, torch.float32)  # of codes and losses
    init = "bank" if searching and isinstance(init, str) and init == "auto" else init
    count = starts if searching else 1
    first = Starts(init, count, len(x), shape, init_scale, bounds, index, seed)

    generate = checked(generator, x, shape)
    contexts = Contexts(context, device)
    parts: list[dict[str, Tensor]] = []
    places: list[Tensor] = []
    # The caller's autocast would round the generator's pass to 16 bits.
    with frozen(generator, norm), torch.autocast(device.type, enabled=False):
        probe = first.probe().to(device, dtype)
        given = contexts.of(torch.arange(len(probe)) % len(x))
        made = tried(generate, probe, *given)
        noisy = norm == "eval" and is_noisy(generate, probe, made, *given)
        if unit:
            check_unit("the generator's output", made)
        check_loss(measure(made, made))
        passes = Passes(generate, generate, "plain passes")
        if searching and precision != "plain":
            passes = faster(generator, generate, precision, probe, made, *given)
        elements = made[0].numel() * contexts.count
        if searching and context is None and callable(init):
            first.better = partial(refined, init, passes.coarse)
        codes = first.bank_codes(bank, elements).to(device, dtype)
        banks = contexts.banks(lambda one: Bank(passes.coarse, codes, one))
        solver: LevenbergMarquardt | LBFGS | Descent
        penalty = None
        if constraint == "map":
            loc, scale = moments
            penalty = partial(normal_penalty, loc=loc, scale=scale, weight=constraint_weight)
        squares = measure is half_squared_error and bounds is None and penalty is None
        if searching and passes.equations is not None and squares:
            solver = LevenbergMarquardt(steps, tolerance)
            how = f"levenberg-marquardt, {first}, {passes.how}"
        elif searching:
            solver = LBFGS(measure, steps, bounds, tolerance, penalty)
            how = f"lbfgs, {first}, {passes.how}"
        else:
            wanted = moments if constraint == "moments" else None
            solver = Descent(
                measure, method, lr, steps, bounds, wanted, constraint_weight, tolerance, history,
                penalty,
            )  # fmt: skip
            how = f"{method}, step size {lr:g}, at most {steps} steps, {first}"
        if noisy:
            how += ", of a generator that makes other data of one code each time"
        if progress:
            print(f"reverse: {how}", file=sys.stderr)
        seen = None if watch is None else lambda z: watch(z.view(-1, *shape))
        filled = batch_size if device.type != "cpu" else None
        with bar(len(x), progress, seen) as told:
            for place in _batches(len(x), batch_size, tied):
                padded = place if tied or searching else fill(place, filled)
                x_part = x[padded.to(x.device)].to(device, dtype)
                start = first.of(padded, x_part, banks)
                batch = Work(x_part, start, first.count, told(len(place)), contexts.of(padded))
                part = solver.run(passes, batch)
                parts.append({key: value[: len(place)].to(x.device) for key, value in part.items()})
                places.append(place)
    order = torch.cat(places).argsort().to(x.device)
    fields = {key: torch.cat([part[key] for part in parts])[order] for key in parts[0]}
    if history:
        fields["history"] = fields["history"].T
    fields["converged"] &= not noisy
    return Reversal(**fields, how=how)


def _batches(num_samples: int, batch_size: int, tied: bool) -> list[Tensor]:
    """Indices of the samples of each batch: runs, or interleaved and of one size if tied."""
    everything = torch.arange(num_samples)
    if not tied:
        return list(everything.split(batch_size))
    count = -(-num_samples // batch_size)
    return [everything[i::count] for i in range(count)]
