"""Fit any prior to codes: by its own method, or by maximum likelihood if it has a density."""

import copy
import math

import torch
from rich.progress import track
from torch import Tensor, nn

__all__ = ["fit_prior", "maximise_likelihood"]

_EVALUATIONS = 40


def fit_prior(
    prior: nn.Module,
    codes: Tensor,
    *,
    seed: int = 0,
    progress: bool = False,
    steps: int = 2000,
    batch_size: int = 200,
    lr: float = 1e-3,
) -> dict[str, float]:
    """Fit `prior` to `codes` in place and freeze it.

    A prior with a `fit` of its own is fitted by that. Any other with parameters and a density, a
    zuko flow say, by :func:`maximise_likelihood`.

    Args:
        prior: a module that, called, returns a distribution over codes.
        codes: `(n, latent_dim)`.
        seed: of the draws; the global generators are restored.
        progress: whether to draw a progress bar.
        steps: optimizer steps of the maximum likelihood fit.
        batch_size: codes a step.
        lr: its step size.

    Returns:
        What a prior's own `fit` reports, or what :func:`maximise_likelihood` does.

    Raises:
        ValueError: if the prior can learn in neither way, or the codes are not finite.
    """
    if not codes.isfinite().all():
        raise ValueError("`codes` must be finite; drop those whose reversal did not converge")
    if hasattr(prior, "fit"):
        return prior.fit(codes, seed=seed, progress=progress)  # type: ignore[operator]
    if next(prior.parameters(), None) is None or not getattr(prior, "has_log_prob", True):
        raise ValueError(
            f"a {type(prior).__name__} prior has nothing to learn from codes; "
            "refit with prior=pushforward or prior=realnvp"
        )
    return maximise_likelihood(
        prior, codes, seed=seed, progress=progress, steps=steps, batch_size=batch_size, lr=lr
    )


def maximise_likelihood(
    prior: nn.Module,
    codes: Tensor,
    *,
    seed: int = 0,
    progress: bool = False,
    steps: int = 2000,
    batch_size: int = 200,
    lr: float = 1e-3,
    patience: int = _EVALUATIONS,
) -> dict[str, float]:
    """Maximise the mean log-density of nine tenths of the codes by Adam, and freeze the prior.

    The last tenth is looked at before the first step and 40 times on the way; the weights that
    were best there are kept, so the prior is never worse on it than it was before.

    Args:
        prior: a module with parameters that, called, returns a distribution with a density.
        codes: `(n, latent_dim)`, at least 2 of them.
        seed: of the draws; the global generators are restored.
        progress: whether to draw a progress bar.
        steps: optimizer steps.
        batch_size: codes a step.
        lr: step size.
        patience: looks without an improvement after which the fit ends.

    Returns:
        `{"nll": …, "steps": …}`: minus the mean log-density of the last tenth, nats per code, and
        the step that reached it.

    Raises:
        ValueError: for fewer than 2 codes.
        FloatingPointError: if that density is not finite.
    """
    if len(codes) < 2:
        raise ValueError(
            f"`codes` must number at least 2, one of them held out, got {len(codes)}; "
            "reverse more images"
        )
    cuda = [codes.device] if codes.is_cuda else []
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        torch.manual_seed(seed)
        codes = codes.detach()[torch.randperm(len(codes)).to(codes.device)]
        cut = max(1, len(codes) // 10)
        held_out, codes = codes[:cut], codes[cut:]
        prior.requires_grad_(True)
        optimizer = torch.optim.Adam(prior.parameters(), lr=lr, fused=True)
        best, reached, weights = _nll(prior, held_out, 0), 0, copy.deepcopy(prior.state_dict())
        every = max(1, steps // _EVALUATIONS)
        for step in track(
            range(1, steps + 1), "fitting the prior", transient=True, disable=not progress
        ):
            batch = codes[torch.randint(len(codes), (batch_size,), device=codes.device)]
            optimizer.zero_grad()
            loss = -prior().log_prob(batch).mean()
            loss.backward()
            optimizer.step()
            if step % every:
                continue
            if (nll := _nll(prior, held_out, step)) < best:
                best, reached, weights = nll, step, copy.deepcopy(prior.state_dict())
            elif step - reached >= patience * every:
                break
        prior.load_state_dict(weights)
        prior.requires_grad_(False)
    return {"nll": best, "steps": float(reached)}


@torch.no_grad()
def _nll(prior: nn.Module, codes: Tensor, step: int) -> float:
    nll = float(-prior().log_prob(codes).mean())
    if not math.isfinite(nll):
        raise FloatingPointError(
            f"the density of held-out codes must stay finite, got {nll} at step {step} of the "
            "fit; lower `prior.lr`"
        )
    return nll
