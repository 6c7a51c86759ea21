"""Fit any prior to codes: by its own method, or by maximum likelihood if it has a density."""

import copy
import math

import torch
from rich.progress import track
from torch import Tensor, nn

__all__ = ["fit_prior"]


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
    zuko flow say, maximises the mean log-density of nine tenths of the codes by Adam, and keeps
    the weights that were best on the last tenth.

    Args:
        prior: a module that, called, returns a distribution over codes.
        codes: `(n, latent_dim)`.
        seed: of the draws; the global generators are restored.
        progress: whether to draw a progress bar.
        steps: optimizer steps of the maximum likelihood fit.
        batch_size: codes a step.
        lr: its step size.

    Returns:
        What a prior's own `fit` reports, or `{"nll": …}`: minus the mean log-density of the last
        tenth, nats per code.

    Raises:
        ValueError: if the prior can learn in neither way, or the codes are not finite.
    """
    if not codes.isfinite().all():
        raise ValueError("`codes` must be finite; drop those whose reversal did not converge")
    if hasattr(prior, "fit"):
        return prior.fit(codes, seed=seed, progress=progress)  # type: ignore[operator]
    parameters = list(prior.parameters())
    if not parameters or not getattr(prior, "has_log_prob", True):
        raise ValueError(
            f"a {type(prior).__name__} prior has nothing to learn from codes; "
            "refit with prior=pushforward or prior=zuko_nsf"
        )
    cuda = [codes.device] if codes.is_cuda else []
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        torch.manual_seed(seed)
        codes = codes.detach()[torch.randperm(len(codes)).to(codes.device)]
        cut = max(1, len(codes) // 10)
        held_out, codes = codes[:cut], codes[cut:]
        prior.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
        best, weights = math.inf, copy.deepcopy(prior.state_dict())
        for step in track(
            range(1, steps + 1), "fitting the prior", transient=True, disable=not progress
        ):
            batch = codes[torch.randint(len(codes), (batch_size,), device=codes.device)]
            optimizer.zero_grad()
            loss = -prior().log_prob(batch).mean()
            loss.backward()
            optimizer.step()
            if step % max(1, steps // 40) == 0:
                with torch.no_grad():
                    nll = float(-prior().log_prob(held_out).mean())
                if nll < best:
                    best, weights = nll, copy.deepcopy(prior.state_dict())
        prior.load_state_dict(weights)
        prior.requires_grad_(False)
    return {"nll": best}
