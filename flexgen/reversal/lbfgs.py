"""Limited-memory BFGS for many samples at once, each with its own line search and its own end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexgen.reversal.curvature import Curvature, curvature
from flexgen.reversal.losses import Loss, Penalty, half_squared_error
from flexgen.reversal.passes import Generate, Passes, Work, fill

# Convergence is tested once in so many evaluations, and where the codes are told in so many.
_WINDOW, _TOLD = 8, 2
# The first step of a start goes no farther than this in a latent space of unit scale.
_FIRST_STEP = 0.5
# A line search that has failed so often forgets the curvature and takes the gradient.
_BACKTRACKS = 5
# Two starts of a sample that end this close have found the same code, or an equally good one.
_AGREEMENT = 0.03
# From far away a start is followed only until it falls by less than so many tolerances.
_COARSE = 50

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
        """From each of a sample's starts by the coarse pass, from the best end by the fine one,
        which goes on with the curvature that the coarse one has learned.

        Every sample takes two starts; those whose two best ends still differ take the others. They
        go one after another, but side by side where a pass is so light that its calls are the work.
        """
        x, count, tell, first = work.x, work.count, work.tell, work.start(0)
        batch, shape, z = len(x), first.shape[1:], first.flatten(1).clone()
        given = (x, *work.context)
        near = self._evaluation(passes.fine, shape, x.is_cuda, passes.fine_residual)
        coarse = near if passes.coarse is passes.fine else None
        far = coarse or self._evaluation(passes.coarse, shape, x.is_cuda)
        losses = z.new_full((batch, count), torch.inf)
        steps = torch.zeros(batch, dtype=torch.long, device=x.device)
        best = losses[:, 0].clone()
        everyone = torch.arange(batch, device=x.device)
        floor, lowest_start, learned = torch.zeros_like(best), best.clone(), curvature(z)

        together = [range(min(2, count)), range(2, count)]
        for starts in together if passes.light else [range(k, k + 1) for k in range(count)]:
            rows = everyone
            if starts.start > 1 and len(starts):
                lowest, second = losses.topk(2, largest=False).values.unbind(1)
                agreed = lowest.isfinite() & (second <= lowest * (1 + _AGREEMENT))
                rows = rows[~(agreed | (lowest <= floor))]
            if not len(rows) or not len(starts):
                break

            merged = partial(_merged, z, best, rows, len(starts))
            share = (starts.start + 0.5) / (count + 1)

            def told(
                found: Tensor, loss: Tensor, merged: Any = merged, share: float = share
            ) -> None:
                tell(share, *merged(found, loss))

            begin = torch.cat([work.start(k).flatten(1)[rows] for k in starts])
            loose, many = _COARSE * self.tolerance, rows.repeat(len(starts))
            found = curvature(begin)
            ends = self._descend(far, given, many, begin, loose, floor[many], told, found)
            # For "mse" the distance ‖G(z) − x‖ has then fallen to the tolerance.
            begun = torch.where(ends.before.isfinite(), ends.before, torch.inf)
            begun = begun.view(len(starts), -1).amin(0)
            lowest_start[rows] = torch.minimum(lowest_start[rows], begun)
            floor = self.tolerance**2 * torch.where(lowest_start.isfinite(), lowest_start, 0)
            lowest, which = ends.loss.view(len(starts), -1).min(0)
            better = (lowest < best[rows]).nonzero()[:, 0]
            learned.put(rows[better], found, which[better] * len(rows) + better)
            z, best = merged(ends.z, ends.loss)
            losses[rows, starts.start : starts.stop] = ends.loss.view(len(starts), -1).T
            steps[rows] += ends.steps.view(len(starts), -1).sum(0)

        refined = partial(tell, count / (count + 1))
        ends = self._descend(near, given, everyone, z, self.tolerance, floor, refined, learned)
        z = ends.z.unflatten(1, shape)
        x_hat = passes(fill(z), *map(fill, work.context))[:batch]
        loss, steps = self.loss(x_hat, x), steps + ends.steps
        converged = ends.converged & loss.isfinite()
        return {"z": z, "x_hat": x_hat, "loss": loss, "steps": steps, "converged": converged}

    def _evaluation(
        self, generate: Generate, shape: torch.Size, graphs: bool,
        residual: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Evaluate:  # fmt: skip
        def evaluate(z: Tensor, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                loss = self.loss(generate(z.clone().unflatten(1, shape), *context), x)
                if self.penalty is not None:
                    loss = loss + self.penalty(z)
                (gradient,) = torch.autograd.grad(loss.sum(), z)
            return loss.detach(), gradient

        def by_residual(z: Tensor, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
            assert residual is not None
            left, downhill = residual(z.unflatten(1, shape), x)
            return left.flatten(1).square().sum(1) / 2, -downhill.flatten(1)

        whole = residual is not None and self.loss is half_squared_error and not self.penalty
        return Captured(evaluate) if graphs else by_residual if whole else evaluate

    def _descend(
        self, evaluate: Evaluate, given: tuple[Tensor, ...], rows: Tensor, z: Tensor,
        tolerance: float, floor: Tensor, tell: Callable[[Tensor, Tensor], None],
        learned: Curvature,
    ) -> _Ends:  # fmt: skip
        """Descend from codes z of the given samples `rows` until none falls by `tolerance`.

        A sample is also done when its loss has come down to its `floor`. What is `learned` of each
        is where it begins, and is kept up.

        Samples that have ended leave the work; it shrinks by whole blocks of rows so that every
        evaluation keeps to sizes whose kernels treat a row alike. Ended rows in one stand still.
        """
        total = real = len(rows)
        graphs = z.is_cuda
        place = _block(torch.arange(total, device=z.device), graphs)
        z, target = self._inside(z[place]), tuple(value[rows[place]] for value in given)
        alive = torch.arange(len(place), device=z.device) < total
        f, g = evaluate(z, *target)
        out_z, out_f, before = z[:total].clone(), f[:total].clone(), f[:total].clone()
        taken = alive[:total].long()
        converged = torch.zeros_like(alive[:total])
        alive &= f.isfinite() & g.isfinite().all(1)
        now, mark, failed = learned.take(place), f, torch.zeros_like(f)
        p, t = self._turn(now, z, f, g)

        for step in range(1, self.steps):
            trial = self._inside(torch.addcmul(z, t[:, None], p))
            moved = trial - z
            slope = (g * moved).sum(1)
            f_trial, g_trial = evaluate(trial, *target)
            change = g_trial - g
            curved = (moved * change).sum(1)
            finite = f_trial.isfinite() & curved.isfinite()
            accepted = alive & finite & (f_trial <= f + 1e-4 * slope)
            sizes = torch.linalg.vector_norm(moved, dim=1) * torch.linalg.vector_norm(change, dim=1)
            now.learn(accepted & (curved > 1e-6 * sizes), moved, change)

            # The minimum of the parabola through f, its slope and f_trial, held within bounds.
            excess = (f_trial - f - slope).clamp_min(1e-30)
            shorter = t * torch.where(finite, -slope / (2 * excess), 0.1).clamp(0.1, 0.5)
            z = torch.where(accepted[:, None], trial, z)
            f = torch.where(accepted, f_trial, f)
            g = torch.where(accepted[:, None], g_trial, g)
            failed = torch.where(accepted | ~alive, 0, failed + 1)
            lost = failed > _BACKTRACKS
            if graphs or lost.any():
                failed = torch.where(lost, 0, failed)
                now.forget(lost)
            turn = accepted | lost
            p_new, t_new = self._turn(now, z, f, g)
            t_new = torch.where(lost, 0.1 * t_new, t_new)
            p, t = torch.where(turn[:, None], p_new, p), torch.where(turn, t_new, shorter)

            taken[place[:real]] += alive[:real]
            last = step == self.steps - 1
            if step % _TOLD == 0 or last:
                out_z[place[:real]], out_f[place[:real]] = z[:real], f[:real]
                tell(out_z, out_f)
            if step % _WINDOW == 0 and tolerance:
                standing = mark - f <= tolerance * mark.abs()
                done = alive & (standing | (f <= floor[place]))
                # Without any slope it stands on a plateau, as where a generator clips.
                flat = (g == 0).all(1) & (f > floor[place])
                converged[place[done & ~flat]] = True
                alive &= ~done
                mark = f
                if not alive.any():
                    break
                going = alive.nonzero()[:, 0]
                left = _block(going, graphs)
                if len(left) < len(place):
                    target = tuple(value[left] for value in target)
                    learned.put(place[:real], now, slice(real))
                    now, real = now.take(left), len(going)
                    place, alive, z, f, g, p, t, mark, failed = (
                        value[left] for value in (place, alive, z, f, g, p, t, mark, failed)
                    )
                    alive[real:] = False  # copies that fill the block
        learned.put(place[:real], now, slice(real))
        return _Ends(out_z, out_f, taken, converged, before)

    def _turn(self, learned: Curvature, z: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """A direction and the first step to try along it."""
        free = self._free(z, g)
        bounded = g if free is None else g * free
        p, t, known = learned.direction(bounded), torch.ones_like(f), learned.known
        if known.is_cuda or not known.all():  # few kernels matter more than a wait on a CPU
            p = torch.where(known[:, None], p, -bounded)
            t = torch.where(known, t, _first_step(f, g))
        return p if free is None else p * free, t

    def _inside(self, z: Tensor) -> Tensor:
        return z.clamp(*self.bounds) if self.bounds else z

    def _free(self, z: Tensor, g: Tensor) -> Tensor | None:
        """1 where a code may move downhill, 0 where it lies on a bound and would leave."""
        if self.bounds is None:
            return None
        low, high = self.bounds
        return (~(((z <= low) & (g > 0)) | ((z >= high) & (g < 0)))).to(z.dtype)


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


def _merged(
    z: Tensor, best: Tensor, rows: Tensor, size: int, found: Tensor, loss: Tensor
) -> tuple[Tensor, Tensor]:
    """The best codes and losses of all samples, with so many codes found of each of some rows."""
    if size > 1:
        loss, which = loss.view(size, -1).min(0)
        found = found.view(size, len(rows), -1)[which, torch.arange(len(rows), device=z.device)]
    better = loss < best[rows]
    codes = z.index_copy(0, rows, torch.where(better[:, None], found, z[rows]))
    return codes, best.index_copy(0, rows, torch.minimum(loss, best[rows]))


def _first_step(f: Tensor, g: Tensor) -> Tensor:
    """A step along −g: to where a parabola that falls to 0 has its minimum, within reason."""
    norm = g.norm(dim=1).clamp_min(1e-12)
    return torch.minimum(_FIRST_STEP / norm, 2 * f / norm.square())


def _block(rows: Tensor, graphs: bool) -> Tensor:
    """Filled up as kernels want it, for graphs to a power of two so that there are few of them."""
    return fill(rows, 1 << max(len(rows) - 1, 15).bit_length() if graphs else None)
