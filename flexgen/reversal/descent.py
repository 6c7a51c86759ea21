"""The papers' loop: first-order descent on the codes of one batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen.reversal.losses import Loss, Penalty, moment_penalty
from flexgen.reversal.passes import Generate, Work

# Bit for bit the published algorithms; each keeps its state per element, so per sample.
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "gd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}

# Convergence is tested, and the progress told, once in so many steps: a test costs the device a
# wait, and a window of 20 took the overshoot of Adam on an easy sample for a standstill.
WINDOW = 50


@dataclass(frozen=True)
class Descent:
    """How one batch of codes is descended; see `reverse` for the meaning of each option."""

    loss: Loss
    method: str
    lr: float
    steps: int
    bounds: tuple[float, float] | None
    moments: tuple[float, float] | None
    constraint_weight: float
    tolerance: float
    history: bool
    penalty: Penalty | None = None

    @torch.no_grad()
    def run(self, generate: Generate, work: Work) -> dict[str, Tensor]:
        """Descend from the first start of each sample."""
        x, context, z = work.x, work.context, work.start(0)
        z = (z.clamp(*self.bounds) if self.bounds else z.clone()).requires_grad_()
        optimizer = OPTIMIZERS[self.method]([z], lr=self.lr)  # type: ignore[call-arg]
        rows = (len(z),) + (1,) * (z.dim() - 1)
        active = torch.ones(len(z), dtype=torch.bool, device=z.device)
        converged, diverged = torch.zeros_like(active), torch.zeros_like(active)
        taken = torch.zeros_like(active, dtype=torch.long)
        best_z = z.detach().clone()
        best = torch.full((len(z),), torch.inf, dtype=z.dtype, device=z.device)
        first = before = best
        history: list[Tensor] = []

        for step in range(self.steps):
            with torch.enable_grad():
                loss = self.loss(generate(z, *context), x)
                objective = self.objective(loss, z, x[0].numel())
                (z.grad,) = torch.autograd.grad(objective.sum(), z)
            loss, objective, previous = loss.detach(), objective.detach(), z.detach().clone()
            finite = objective.isfinite() & z.grad.flatten(1).isfinite().all(1)
            better = finite & (objective < best)
            best = torch.where(better, objective, best)
            best_z = torch.where(better.view(rows), previous, best_z)
            diverged |= active & ~finite
            active &= finite
            optimizer.step()
            if self.bounds:
                z.clamp_(*self.bounds)
            z.copy_(torch.where(active.view(rows), z, previous))
            taken += active
            if self.history:
                history.append(loss)
            if step == 0:
                first = before = best
            elif (step + 1) % WINDOW == 0:
                work.tell((step + 1) / self.steps, previous, loss)
                if self.tolerance:
                    standing = before - best <= self.tolerance * before.abs()
                    met = best <= self.tolerance**2 * first
                    done = active & (standing | met)
                    # Without any slope it stands on a plateau, as where a generator clips.
                    converged |= done & (met | z.grad.flatten(1).any(1))
                    active &= ~done
                    z.copy_(torch.where(done.view(rows), best_z, z))
                    before = best
                    if not active.any():
                        break

        # A sample that ran away is given back where it was best, not where it burst.
        z = torch.where(diverged.view(rows), best_z, z.detach())
        x_hat = generate(z, *context)
        burst = ~self.loss(x_hat, x).isfinite()
        if burst.any():
            converged &= ~burst
            z = torch.where(burst.view(rows), best_z, z)
            x_hat = generate(z, *context)
        loss = self.loss(x_hat, x)
        result = {"z": z, "x_hat": x_hat, "loss": loss, "steps": taken, "converged": converged}
        if self.history:
            history += [loss] * (self.steps - len(history))
            result["history"] = torch.stack(history, 1) if history else loss.new_empty(len(z), 0)
        return result

    def objective(self, loss: Tensor, z: Tensor, num_elements: int) -> Tensor:
        """What is minimised for each sample: its loss and penalty, or eq. 5 under the moments."""
        if self.moments is None:
            return loss if self.penalty is None else loss + self.penalty(z)
        return loss / num_elements + self.constraint_weight * moment_penalty(z, *self.moments)
