"""Limited-memory BFGS for many samples at once, each with its own line search and its own end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flexgen.reversal.losses import Loss, Penalty
from flexgen.reversal.passes import Generate, Passes, Work, fill

# Curvature pairs kept; more gave nothing on latent sizes of 20.
_MEMORY = 10
# Convergence is tested once in so many evaluations.
_WINDOW = 8
# The first step of a start goes no farther than this in a latent space of unit scale.
_FIRST_STEP = 0.5
# A line search that has failed so often forgets the curvature and takes the gradient.
_BACKTRACKS = 5
# Two starts of a sample that end this close have found the same code, or an equally good one.
_AGREEMENT = 0.03
# From far away a start is followed only until it falls by less than so many tolerances.
_COARSE = 10

# Of codes, targets and, where the generator takes one, contexts: losses and gradients.
Evaluate = Callable[..., tuple[Tensor, Tensor]]

# With the tensors that it reads and writes.
Recording = tuple[torch.cuda.CUDAGraph, Sequence[Tensor], Sequence[Tensor]]


class _Ends(NamedTuple):
    """Where descents ended."""

    z: Tensor
    loss: Tensor
    steps: Tensor
    converged: Tensor
    before: Tensor


@dataclass(frozen=True)
class LBFGS:
    """How one batch of codes is found; see `reverse` for the meaning of each option."""

    loss: Loss
    steps: int
    bounds: tuple[float, float] | None
    tolerance: float
    penalty: Penalty | None = None

    @torch.no_grad()
    def run(self, passes: Passes, work: Work) -> dict[str, Tensor]:
        """From each of a sample's starts by the coarse pass, from the best end by the fine one.

        Every sample takes two starts; those whose two best ends still differ take the others, one
        after another.
        """
        x, count, tell, first = work.x, work.count, work.tell, work.start(0)
        batch, shape, z = len(x), first.shape[1:], first.flatten(1).clone()
        given = (x, *work.context)
        far = self._evaluation(passes.coarse, shape, x.is_cuda)
        near = self._evaluation(passes.fine, shape, x.is_cuda)
        losses = z.new_full((batch, count), torch.inf)
        steps = torch.zeros(batch, dtype=torch.long, device=x.device)
        best = losses[:, 0].clone()
        everyone = torch.arange(batch, device=x.device)
        floor, lowest_start = torch.zeros_like(best), best.clone()

        for k in range(count):
            rows = everyone
            if k > 1:
                lowest, second = losses.topk(2, largest=False).values.unbind(1)
                agreed = lowest.isfinite() & (second <= lowest * (1 + _AGREEMENT))
                rows = rows[~(agreed | (lowest <= floor))]
            if not len(rows):
                break

            def told(found: Tensor, loss: Tensor, k: int = k, rows: Tensor = rows) -> None:
                better = loss < best[rows]
                codes = z.index_copy(0, rows, torch.where(better[:, None], found, z[rows]))
                now = best.index_copy(0, rows, torch.minimum(loss, best[rows]))
                tell((k + 0.5) / (count + 1), codes, now)

            begin = work.start(k).flatten(1)[rows] if k else z.clone()
            loose = _COARSE * self.tolerance
            ends = self._descend(far, given, rows, begin, loose, floor[rows], told)
            # For "mse" the distance ‖G(z) − x‖ has then fallen to the tolerance.
            begun = torch.where(ends.before.isfinite(), ends.before, torch.inf)
            lowest_start[rows] = torch.minimum(lowest_start[rows], begun)
            floor = self.tolerance**2 * torch.where(lowest_start.isfinite(), lowest_start, 0)
            better = ends.loss < best[rows]
            z[rows] = torch.where(better[:, None], ends.z, z[rows])
            best[rows] = torch.minimum(ends.loss, best[rows])
            losses[rows, k] = ends.loss
            steps[rows] += ends.steps

        refined = partial(tell, count / (count + 1))
        ends = self._descend(near, given, everyone, z, self.tolerance, floor, refined)
        z = ends.z.unflatten(1, shape)
        x_hat = passes(fill(z), *map(fill, work.context))[:batch]
        loss, steps = self.loss(x_hat, x), steps + ends.steps
        converged = ends.converged & loss.isfinite()
        return {"z": z, "x_hat": x_hat, "loss": loss, "steps": steps, "converged": converged}

    def _evaluation(self, generate: Generate, shape: torch.Size, graphs: bool) -> Evaluate:
        def evaluate(z: Tensor, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                loss = self.loss(generate(z.clone().unflatten(1, shape), *context), x)
                if self.penalty is not None:
                    loss = loss + self.penalty(z)
                (gradient,) = torch.autograd.grad(loss.sum(), z)
            return loss.detach(), gradient

        return Captured(evaluate) if graphs else evaluate

    def _descend(
        self, evaluate: Evaluate, given: tuple[Tensor, ...], rows: Tensor, z: Tensor,
        tolerance: float, floor: Tensor, tell: Callable[[Tensor, Tensor], None],
    ) -> _Ends:  # fmt: skip
        """Descend from codes z of the given samples `rows` until none falls by `tolerance`.

        A sample is also done when its loss has come down to its `floor`.

        Samples that have ended leave the work; it shrinks by whole blocks of rows so that every
        evaluation keeps to sizes whose kernels treat a row alike. Ended rows in a block idle.
        """
        total = len(rows)
        graphs = z.is_cuda
        place = _block(torch.arange(total, device=z.device), graphs)
        z, target = self._inside(z[place]), tuple(value[rows[place]] for value in given)
        alive = torch.arange(len(place), device=z.device) < total
        f, g = evaluate(z, *target)
        out_z, out_f, before = z[:total].clone(), f[:total].clone(), f[:total].clone()
        taken = alive[:total].long()
        converged = torch.zeros_like(alive[:total])
        alive &= f.isfinite() & g.isfinite().all(1)
        s = z.new_zeros(len(z), _MEMORY, z.shape[1])
        y, mark, failed = s.clone(), f.clone(), torch.zeros_like(f)
        p, t = -g, _first_step(f, g)

        for step in range(1, self.steps):
            trial = self._inside(z + t[:, None] * p)
            moved = trial - z
            slope = (g * moved).sum(1)
            f_trial, g_trial = evaluate(trial, *target)
            finite = f_trial.isfinite() & g_trial.isfinite().all(1)
            accepted = finite & (f_trial <= f + 1e-4 * slope)

            change = g_trial - g
            curvature = (moved * change).sum(1)
            sound = curvature > 1e-6 * moved.norm(dim=1) * change.norm(dim=1)
            learn = (accepted & sound)[:, None, None]
            s = torch.where(learn, torch.cat([s[:, 1:], moved[:, None]], 1), s)
            y = torch.where(learn, torch.cat([y[:, 1:], change[:, None]], 1), y)

            # The minimum of the parabola through f, its slope and f_trial, held within bounds.
            excess = (f_trial - f - slope).clamp_min(1e-30)
            shorter = t * torch.where(finite, -slope / (2 * excess), 0.1).clamp(0.1, 0.5)
            z = torch.where(accepted[:, None], trial, z)
            f = torch.where(accepted, f_trial, f)
            g = torch.where(accepted[:, None], g_trial, g)
            failed = torch.where(accepted, 0, failed + 1)
            lost = failed > _BACKTRACKS
            failed = torch.where(lost, 0, failed)
            s, y = (torch.where(lost[:, None, None], 0, pairs) for pairs in (s, y))

            free = self._free(z, g)
            newton, known = direction(s, y, g * free)
            p_new = torch.where(known[:, None], newton, -g) * free
            t_new = torch.where(known, 1, _first_step(f, g) * torch.where(lost, 0.1, 1))
            turn = accepted | lost
            p, t = torch.where(turn[:, None], p_new, p), torch.where(turn, t_new, shorter)

            where = place[alive]
            out_z[where], out_f[where] = z[alive], f[alive]
            taken[where] += 1
            tell(out_z, out_f)
            if step % _WINDOW == 0 and tolerance:
                standing = mark - f <= tolerance * mark.abs()
                done = alive & (standing | (f <= floor[place]))
                converged[place[done]] = True
                alive &= ~done
                mark = f
                if not alive.any():
                    break
                going = alive.nonzero()[:, 0]
                left = _block(going, graphs)
                if len(left) < len(place):
                    target = tuple(value[left] for value in target)
                    place, alive, z, f, g, p, t, s, y, mark, failed = (
                        value[left] for value in (place, alive, z, f, g, p, t, s, y, mark, failed)
                    )
                    alive[len(going) :] = False  # copies that fill the block
        return _Ends(out_z, out_f, taken, converged, before)

    def _inside(self, z: Tensor) -> Tensor:
        return z.clamp(*self.bounds) if self.bounds else z

    def _free(self, z: Tensor, g: Tensor) -> Tensor:
        """1 where a code may move downhill, 0 where it lies on a bound and would leave."""
        if self.bounds is None:
            return torch.ones((), dtype=z.dtype, device=z.device)
        low, high = self.bounds
        return (~(((z <= low) & (g > 0)) | ((z >= high) & (g < 0)))).to(z.dtype)


def direction(s: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The quasi-Newton direction −H g of each row, H from its pairs (s, y) by limited-memory BFGS.

    H = γI + [S γY] [[R⁻ᵀ(D + γYᵀY)R⁻¹, −R⁻ᵀ], [−R⁻¹, 0]] [Sᵀ; γYᵀ], with R the upper triangle of
    SᵀY, D its diagonal and γ = sᵀy / yᵀy of the last pair: two triangular solves in place of the
    two-loop recursion's 4m products.

    Args:
        s: steps, `(batch, m, d)`, the oldest first; rows of zeros stand for pairs not had yet.
        y: changes of the gradient, `(batch, m, d)`.
        g: gradients, `(batch, d)`.

    Returns:
        Directions `(batch, d)`, and `(batch,)` whether there was a pair to build on.

    Source: Byrd, Nocedal & Schnabel, 1994, eq. 3.1 (theorem 2.2 for BFGS in compact form).
    """
    features = g.shape[1]
    # Products over 7 or 17 columns, say, round a row by its place in the batch; over 16 not.
    s, y, g = (F.pad(value, (0, -features % 16)) for value in (s, y, g))
    products = s @ y.mT
    diagonal = products.diagonal(dim1=1, dim2=2)
    r = products.triu() + torch.diag_embed((diagonal == 0).to(s.dtype))  # no pair: an identity
    known = diagonal[:, -1] > 0
    gamma = (diagonal[:, -1] / y[:, -1].square().sum(1).clamp_min(1e-30))[:, None, None]
    g = g[:, :, None]
    u = torch.linalg.solve_triangular(r, s @ g, upper=True)
    w = diagonal[:, :, None] * u + gamma * (y @ (y.mT @ u - g))
    v = torch.linalg.solve_triangular(r.mT, w, upper=False)
    return -(gamma * (g - y.mT @ u) + s.mT @ v)[:, :features, 0], known


class Captured:
    """An evaluation as CUDA graphs: recorded once for each number of rows, then replayed.

    A small generator's pass is a hundred kernels of a few microseconds each, so that launching them
    costs more than running them.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self.evaluate = evaluate
        self.possible = True
        self.graphs: dict[int, Recording] = {}

    def __call__(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        size = len(given[0])
        if size not in self.graphs and self.possible:
            try:
                self.graphs[size] = self._record(*(value.clone() for value in given))
            except RuntimeError:  # a generator that waits for the device cannot be recorded
                self.possible = False
        if not self.possible:
            return self.evaluate(*given)
        graph, inputs, outputs = self.graphs[size]
        for buffer, value in zip(inputs, given, strict=True):
            buffer.copy_(value)
        graph.replay()
        f, g = (output.clone() for output in outputs)
        return f, g

    def _record(self, *given: Tensor) -> Recording:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries choose their kernels before the recording
                self.evaluate(*given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.evaluate(*given)
        return graph, given, outputs


def _first_step(f: Tensor, g: Tensor) -> Tensor:
    """A step along −g: to where a parabola that falls to 0 has its minimum, within reason."""
    norm = g.norm(dim=1).clamp_min(1e-12)
    return torch.minimum(_FIRST_STEP / norm, 2 * f / norm.square())


def _block(rows: Tensor, graphs: bool) -> Tensor:
    """Filled up as kernels want it, for graphs to a power of two so that there are few of them."""
    return fill(rows, 1 << max(len(rows) - 1, 15).bit_length() if graphs else None)
