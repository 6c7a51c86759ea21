"""What is shown of a reversal: its figures, and pairs of originals and reconstructions."""

import io
import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from flexgen.analysis.reversal_job import Job
from flexgen.data.sources import printable
from flexgen.drawing import draw_images
from flexgen.files import write_text
from flexgen.report.pairs import Pair, pairs_page
from flexgen.reversal.freezing import frozen
from flexgen.reversal.stream import Streamed


def sum_up(done: Streamed, seconds: float, job: Job) -> list[tuple[str, str]]:
    """Print how it went; the same figures are returned by name."""
    with safe_open(done.codes, "pt") as file:
        loss, converged = file.get_tensor("loss").double(), file.get_tensor("converged")
        how = file.metadata()["how"]
    finite = loss[loss.isfinite()]
    mean = median = tail = torch.tensor(math.nan)
    if len(finite):
        mean, median = (
            finite.mean(),
            finite.quantile(0.5) if len(finite) < 2**24 else finite.median(),
        )
        tail = finite.kthvalue(max(1, int(0.9 * len(finite)))).values
        if len(finite) < 2**24:
            tail = finite.quantile(0.9)
    now = done.samples - done.before
    before = f"{done.before} were done before, " if done.before else ""
    before += "then " if now and before else "none are left" if before else ""
    speed = f"{now} samples in {seconds:.1f} s, {now / seconds:.3g}/s" if now else ""
    bce = job.options.get("loss") == "bce"
    share = 100 * float(converged.float().mean())
    facts = [
        ("method", how),
        ("reversed", before + speed),
        (
            f"loss ({'cross-entropy, nats' if bce else 'half the squared error'} a sample)",
            f"mean {mean:.4g}, median {median:.4g}, 90th percentile {tail:.4g}",
        ),
        ("converged", f"{share:.1f} % ({int(converged.sum())} of {done.samples})"),
    ]
    if len(finite) < len(loss):
        facts.append(("not finite", f"the loss of {len(loss) - len(finite)} samples"))
    for name, text in facts:
        print(f"{name}: {text}")
    return facts


def show_pairs(codes: Path, job: Job, facts: list[tuple[str, str]], asked: dict[str, Any]) -> None:
    """Draw the worst, the best and some between: `pairs.png` and `pairs.html` beside the codes."""
    if len(job.probe.shape) != 3 or job.probe.shape[0] not in (1, 3):
        print("pairs: none drawn, for the samples are not images in grey or colour")
        return
    with safe_open(codes, "pt") as file:
        loss, converged = file.get_tensor("loss"), file.get_tensor("converged")
        groups = _groups(loss, asked["pairs"])
        rows = torch.cat(list(groups.values()))
        stored = file.get_slice("z")
        z = torch.cat([stored[row : row + 1] for row in rows.tolist()])
    order = rows.argsort()
    x = torch.empty(len(rows), *job.probe.shape)
    x[order] = job.reader.read(job.index[rows[order]])
    norm = job.options.get("norm", "eval")
    with torch.no_grad(), frozen(job.loaded.generator, norm):
        x_hat = job.loaded.generator(z.to(job.device, job.loaded.dtype)).float().cpu()
    out = codes.parent
    # Rows of originals, each above the row of its reconstructions.
    columns = min(16, len(x))
    white = torch.full((-len(x) % columns, *x.shape[1:]), job.range[1])
    above, below = (torch.cat([side, white]).unflatten(0, (-1, columns)) for side in (x, x_hat))
    both = torch.stack([above, below], 1).flatten(0, 2)
    draw_images(both, job.range, out / "pairs.png", columns=columns)
    tested = job.options.get("tolerance") != 0
    found = job.index[rows].tolist()
    names = [job.reader.names[i] if job.reader.names else f"sample {i}" for i in found]
    pairs = iter(
        Pair(_png(a, b, job.range), name, float(loss[row]), bool(converged[row]) or not tested)
        for a, b, name, row in zip(x, x_hat, names, rows.tolist(), strict=True)
    )
    shown = {title: list(islice(pairs, len(group))) for title, group in groups.items()}
    about = [
        ("generator", f"{asked['generator']} ({job.loaded.kind})"),
        ("data", printable(asked["path"])),
    ]
    page = pairs_page(str(asked["generator"]), [*about, *facts], shown)
    write_text(out / "pairs.html", page)
    print(f"pairs: {out / 'pairs.html'}, {out / 'pairs.png'}")


def _groups(loss: Tensor, most: int) -> dict[str, Tensor]:
    """Rows of the worst, the best, and some evenly spaced by rank between; none twice."""
    ranked = loss.nan_to_num(nan=math.inf).argsort(descending=True, stable=True)
    k = min(most, -(-len(ranked) // 3))
    worst, best = ranked[:k], ranked[k:].flip(0)[:k]
    middle = ranked[k : len(ranked) - len(best)]
    some = middle[torch.linspace(0, max(len(middle) - 1, 0), min(k, len(middle))).round().long()]
    groups = {"Worst": worst, "Best": best, "Between, from worse to better": some}
    return {title: rows for title, rows in groups.items() if len(rows)}


def _png(x: Tensor, x_hat: Tensor, value_range: tuple[float, float]) -> bytes:
    """One image file: the original above its reconstruction."""
    from PIL import Image

    low, high = value_range
    zoom = max(1, 64 // x.shape[1])  # so that the gap between small ones is thin
    x, x_hat = (side.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2) for side in (x, x_hat))
    gap = torch.full((x.shape[0], max(2, x.shape[1] // 32), x.shape[2]), high)
    both = ((torch.cat([x, gap, x_hat], 1) - low) / (high - low)).nan_to_num().clamp(0, 1)
    pixels = (both * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    return file.getvalue()
