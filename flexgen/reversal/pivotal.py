"""`pivotal_tuning`: a generator fitted to a few images around their codes."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from flexgen.checks import check_integer, check_not_negative, check_positive
from flexgen.reversal.freezing import frozen
from flexgen.reversal.losses import Term, loss_of
from flexgen.reversal.preparation import Contexts, check_context
from flexgen.reversal.starts import normal_codes


@dataclass(frozen=True)
class Tuned:
    """A tuned copy of a generator, and what it makes of the codes.

    Attributes:
        generator: the copy, in eval mode, its parameters without gradients.
        x_hat: what it makes of the codes, `(n, *shape)`.
        loss: of each, `(n,)`; `before` that of the generator as it was.
        drift: root mean square difference of the two generators' data, over elements, for codes
            drawn from N(0, I): how much of the rest was changed.
    """

    generator: nn.Module
    x_hat: Tensor
    loss: Tensor
    before: Tensor
    drift: float


def pivotal_tuning(
    generator: nn.Module, x: Tensor, z: Tensor, *, context: Tensor | None = None,
    loss: Term | Sequence[Term] = "mse", steps: int = 350, lr: float = 3e-4, locality: float = 0.1,
    batch_size: int = 16, seed: int = 0, progress: bool = False,
) -> Tuned:  # fmt: skip
    """Weights θ that lower ℓ(G(z; θ), x) at fixed codes z, the "pivots", in a copy of a generator.

    Each of `steps` steps of Adam takes a batch of the samples and lowers

        mean ℓ(G(z; θ), x) + λ · mean ℓ(G(z_r; θ), G(z_r; θ₀)),   z_r halfway from z to a draw of
        N(0, I),

    whose second term holds the generator to what it was away from the pivots. The copy is in
    float32 at least and in eval mode: batch-norm statistics stay. The generator that is given is
    not touched.

    Args:
        generator: codes to data, with parameters.
        x: data, `(n, *shape)`; a handful, for the copy to fit all of them.
        z: their codes, `(n, *latent_shape)`, best of a generator that already makes them nearly.
        context: what the generator is called with beside the codes, of each sample.
        loss: as in :func:`~flexgen.reversal.reverse`.
        steps, lr: of Adam.
        locality: λ.
        batch_size: samples a step.
        seed: of the draws.
        progress: whether to show a progress bar, on standard error.

    Raises:
        ValueError: if the generator is no module or has no parameters, or an option does not fit.

    Source: Roich et al., "Pivotal tuning for latent-based editing of real images", 2022, eq. 2 to 4
        (350 steps of 3e-4, λ = 0.1). Departures: their z_r lies 30 away from the pivot towards the
        draw, whatever their distance; any loss stands in the place of LPIPS and squared error.
    """
    check_integer("steps", steps)
    check_integer("batch_size", batch_size)
    check_positive("lr", lr)
    check_not_negative("locality", locality)
    check_context(context, len(x))
    if not isinstance(generator, nn.Module) or not any(True for _ in generator.parameters()):
        raise ValueError(
            "pivotal tuning needs a torch.nn.Module with parameters, got "
            f"{type(generator).__name__}; give the module itself, no function or frozen program"
        )
    if len(z) != len(x):
        raise ValueError(f"`z` must hold a code of each of {len(x)} samples, got {len(z)}")
    measure = loss_of(loss)
    tuned = copy.deepcopy(generator).eval()
    for parameter in tuned.parameters():
        wide = torch.promote_types(parameter.dtype, torch.float32)
        parameter.data = parameter.data.to(wide)
        parameter.requires_grad_(parameter.is_floating_point())
    weight = next(tuned.parameters())
    for buffer in tuned.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(weight.dtype)
    x, z = x.to(weight), z.to(weight)
    own = next(generator.parameters()).dtype
    given = Contexts(context, weight.device).of

    def draws(step: int, n: int) -> Tensor:
        return normal_codes(torch.arange(n) + step * batch_size, z.shape[1:], seed).to(z)

    everyone = torch.arange(len(x))

    @torch.no_grad()
    def as_it_was(codes: Tensor, place: Tensor) -> Tensor:
        made: Tensor = generator(codes.to(own), *given(place))
        return made.to(weight.dtype)

    def as_it_is(codes: Tensor, place: Tensor) -> Tensor:
        made: Tensor = tuned(codes, *given(place))
        return made

    def in_parts(generate: Callable[[Tensor, Tensor], Tensor], codes: Tensor) -> Tensor:
        places = (torch.arange(len(codes)) % len(x)).split(batch_size)
        parts = zip(codes.split(batch_size), places, strict=True)
        return torch.cat([generate(part, place) for part, place in parts])

    with frozen(generator, "eval"), torch.enable_grad():
        optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=lr)
        console = Console(stderr=True)
        for step in track(range(steps), "tuning", console=console, disable=not progress):
            place = everyone.roll(-step * batch_size)[:batch_size]
            near = (z[place] + draws(step, len(place))) / 2
            total = measure(as_it_is(z[place], place), x[place]).mean()
            if locality:
                held = measure(as_it_is(near, place), as_it_was(near, place)).mean()
                total = total + locality * held
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    for parameter in tuned.parameters():  # a ScriptModule has no requires_grad_ of its own
        parameter.requires_grad_(False)
    with frozen(generator, "eval"), torch.no_grad():
        x_hat = in_parts(as_it_is, z)
        before = measure(in_parts(as_it_was, z), x)
        few = draws(0, min(4, steps) * batch_size)
        moved = in_parts(as_it_is, few) - in_parts(as_it_was, few)
    return Tuned(tuned, x_hat, measure(x_hat, x), before, float(moved.square().mean().sqrt()))
