"""Fit a prior with a density to codes by maximum likelihood."""

import copy
import math
from collections.abc import Callable

import torch
from rich.progress import track
from torch import Tensor

from flexgen.contracts import Draws, Prior, Report
from flexgen.priors.gaussian import check_codes

_EVALUATIONS = 40
# Enough to choose by; of more, a look at a continuous flow takes longer than what it looks after.
_HELD_OUT = 2000


def maximise_likelihood(
    prior: Prior, codes: Tensor, *, context: Tensor | None = None, draws: Draws | None = None,
    seed: int = 0, progress: bool = False, steps: int = 2000, batch_size: int = 200,
    lr: float = 1e-3, patience: int = _EVALUATIONS, anneal: bool = False, weight_decay: float = 0.0,
    surrogate: Callable[[Tensor], Tensor] | None = None,
) -> Report:  # fmt: skip
    """Minimise the mean cross-entropy of nine tenths of the codes by AdamW, and freeze the prior.

    The last tenth, or about 2,000 codes if that is fewer, of other data than the rest, is looked at
    before the first step and 40 times on the way; the weights that were best there are kept, so the
    prior is never worse on it than it was before.

    Args:
        prior: with parameters; its `cross_entropy`, −log p(z) where p is normalised, is minimised.
        codes: `(n, latent_dim)`, at least 2 of them, finite.
        context, draws, seed, progress: as for :meth:`~flexgen.contracts.Prior.fit`.
        steps, batch_size, lr, weight_decay: of AdamW.
        patience: looks without an improvement after which the fit ends.
        anneal: whether `lr` falls to 0 as a cosine. At one rate Adam's noise in coordinates that
            there is nothing to learn of outweighs what the others gain. The gain comes late, so
            `patience` is best left at all 40 looks.
        surrogate: of codes `(batch_size, d)`, what is minimised in the place of their mean
            cross-entropy, which still says which weights are best.

    Returns:
        `{"nll": …, "steps": …}`: minus the mean log-density of the last tenth, nats per code, and
        the step that reached it; `cross_entropy` in the place of `nll` if p is not normalised.

    Raises:
        ValueError: for codes of another shape, fewer than 2, or not finite.
        FloatingPointError: if that density is not finite.
    """
    check_codes(codes, prior.latent_dim, at_least=2)
    cuda = [codes.device] if codes.is_cuda else []
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        torch.manual_seed(seed)
        held_out, rest = _parts(len(codes), draws, codes.device)

        def loss_of(rows: Tensor) -> Tensor:
            chosen = None if context is None else context[rows]
            return prior.cross_entropy(codes.detach()[rows], chosen).mean()

        def looked(step: int) -> float:
            """What is to fall on held-out data: with draws whose prior is known −log p(x) itself,
            as that of the old posterior's codes stops falling long before."""
            if draws is None or draws.log_prior is None or not prior.normalised:
                return _checked(loss_of, held_out, step)
            of_held_out = Draws(draws.datum[held_out], draws.log_prior[held_out])

            def loss(rows: Tensor) -> Tensor:
                chosen = None if context is None else context[rows]
                return -of_held_out.gain(-prior.cross_entropy(codes[rows], chosen)).mean()

            return _checked(loss, held_out, step)

        prior.requires_grad_(True)
        optimizer = torch.optim.AdamW(
            prior.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if anneal else None
        best, reached = looked(0), 0
        weights = copy.deepcopy(prior.state_dict())
        every = max(1, steps // _EVALUATIONS)
        bar = track(range(1, steps + 1), "fitting the prior", transient=True, disable=not progress)
        for step in bar:
            batch = rest[torch.randint(len(rest), (batch_size,), device=codes.device)]
            optimizer.zero_grad()
            (loss_of(batch) if surrogate is None else surrogate(codes.detach()[batch])).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if step % every:
                continue
            if (loss := looked(step)) < best:
                best, reached, weights = loss, step, copy.deepcopy(prior.state_dict())
            elif step - reached >= patience * every:
                break
        prior.load_state_dict(weights)
        prior.requires_grad_(False)
        mean = _checked(loss_of, held_out, reached)
    return {"nll" if prior.normalised else "cross_entropy": mean, "steps": float(reached)}


def _parts(n: int, draws: Draws | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """The codes of a tenth of the data or of fewer, in random order, and the rest."""
    shuffled = torch.randperm(n).to(device)
    cut = min(max(1, n // 10), _HELD_OUT)
    if draws is None:
        return shuffled[:cut], shuffled[cut:]
    datum = draws.datum
    different = datum.unique()
    chosen = different[
        torch.randperm(len(different)).to(device)[: max(1, len(different) * cut // n)]
    ]
    held_out = torch.isin(datum[shuffled], chosen)
    return shuffled[held_out], shuffled[~held_out]


@torch.no_grad()
def _checked(loss_of: Callable[[Tensor], Tensor], rows: Tensor, step: int) -> float:
    loss = float(loss_of(rows))
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the density of held-out codes must stay finite, got {loss} at step {step} of the "
            "fit; lower `prior.lr`"
        )
    return loss
