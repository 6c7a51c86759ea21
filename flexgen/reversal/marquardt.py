"""Levenberg-Marquardt for many samples at once, for networks whose Jacobian is little work."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen.reversal.losses import half_squared_error
from flexgen.reversal.passes import Passes, Work, fill

# Convergence is tested once in so many steps, and where the codes are told in so many.
_WINDOW, _TOLD = 4, 2
# Of the largest diagonal element of JᵀJ, the first damping.
_DAMPING = 0.1
# Starts that are behind the best of their sample by this share of the loss are followed only while
# they fall by more than so many tolerances.
_BEHIND, _COARSE = 0.03, 50


@dataclass(frozen=True)
class LevenbergMarquardt:
    """How one batch of codes is found under ½‖x − G(z)‖², all starts of all samples side by side.

    A step s of a code solves (JᵀJ + λI) s = Jᵀ(x − G(z)), and is taken if the loss falls; λ falls
    or grows with ρ, the fall over what the linear model foresaw: by max(⅕, 1 − (2ρ − 1)³) after a
    step that is taken, else by 2, 4, 8, …

    Args:
        steps: evaluations of a start at most.
        tolerance: see :func:`~flexgen.reversal.reverse`.

    Source: Madsen, Nielsen & Tingleff, "Methods for non-linear least squares problems", 2004,
        algorithm 3.16. Departure: ⅕, where they have ⅓.
    """

    steps: int
    tolerance: float

    @torch.no_grad()
    def run(self, passes: Passes, work: Work) -> dict[str, Tensor]:
        """Descend from each of a sample's starts; the best end is its code."""
        assert passes.equations is not None
        batch, count, shape = len(work.x), work.count, work.start(0).shape[1:]
        out_z = torch.cat([work.start(k).flatten(1) for k in range(count)])
        total = real = len(out_z)
        place = fill(torch.arange(total, device=out_z.device))
        z, x = out_z[place], work.x.flatten(1)[place % batch]
        f, a, g = passes.equations(z, x)
        out_f = f[:total].clone()
        begun = torch.where(out_f.isfinite(), out_f, torch.inf).view(count, batch).amin(0)
        # The distance ‖G(z) − x‖ has then fallen to the tolerance.
        floor = self.tolerance**2 * torch.where(begun.isfinite(), begun, 0).repeat(count)[place]
        damping = _DAMPING * a.diagonal(dim1=1, dim2=2).amax(1)
        growth, mark = torch.full_like(f, 2), f
        taken = torch.ones(total, dtype=torch.long, device=z.device)
        converged = torch.zeros(total, dtype=torch.bool, device=z.device)

        def best() -> tuple[Tensor, Tensor]:
            loss, which = out_f.nan_to_num(torch.inf).view(count, batch).min(0)
            return which * batch + torch.arange(batch, device=which.device), loss

        for step in range(1, self.steps):
            damped = a.clone()
            damped.diagonal(dim1=1, dim2=2).add_(damping[:, None])
            factor = torch.linalg.cholesky_ex(damped).L
            s = torch.cholesky_solve(g[:, :, None], factor)[:, :, 0]
            trial = z + s[:, : z.shape[1]]  # the rest is 0
            f_trial, a_trial, g_trial = passes.equations(trial, x)
            foreseen = (s * (damping[:, None] * s + g)).sum(1) / 2
            ratio = (f - f_trial) / foreseen
            fell = (f_trial < f) & (ratio > 1e-4)  # neither of what is not a number
            z, g = torch.where(fell[:, None], trial, z), torch.where(fell[:, None], g_trial, g)
            a, f = torch.where(fell[:, None, None], a_trial, a), torch.where(fell, f_trial, f)
            factor = (1 - (2 * ratio - 1) ** 3).clamp_min(0.2)
            damping = damping * torch.where(fell, factor, growth)
            growth = torch.where(fell, 2, 2 * growth)

            taken[place[:real]] += 1
            last = step == self.steps - 1
            ended = step % _WINDOW == 0 and self.tolerance
            if step % _TOLD == 0 or ended or last:
                out_z[place[:real]], out_f[place[:real]] = z[:real], f[:real]
                rows, lowest = best()
                work.tell(step / self.steps, out_z[rows], lowest)
            if ended:
                # Behind the sample's best a start must fall fast to be of use.
                behind = f > (1 + _BEHIND) * lowest[place % batch]
                least = torch.where(behind, _COARSE * self.tolerance, self.tolerance)
                done = (mark - f <= least * mark) | (f <= floor) | ~f.isfinite()
                converged[place[:real]] = done[:real]
                going = (~done[:real]).nonzero()[:, 0]
                if not len(going):
                    break
                left, real, mark = fill(going), len(going), f
                place, z, x, f, a, g, damping, growth, mark, floor = (
                    v[left] for v in (place, z, x, f, a, g, damping, growth, mark, floor)
                )

        rows = best()[0]
        z = out_z[rows].unflatten(1, shape)
        x_hat = passes(fill(z), *map(fill, work.context))[:batch]
        loss = half_squared_error(x_hat, work.x)
        steps = taken.view(count, batch).sum(0)
        ends = converged[rows] & loss.isfinite()
        return {"z": z, "x_hat": x_hat, "loss": loss, "steps": steps, "converged": ends}
