"""What is shown of a reversal: its figures, and pairs of originals and reconstructions."""

import io
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from flexgen.analysis.reversal_job import Job
from flexgen.data.sources import printable
from flexgen.drawing import draw_images
from flexgen.files import write_text
from flexgen.report.pairs import Pair, pairs_page
from flexgen.reversal.freezing import frozen
from flexgen.reversal.losses import loss_text
from flexgen.reversal.stream import Streamed

ERRORS = {"psnr": "PSNR, dB", "rmse": "RMSE", "ssim": "SSIM"}
"""What is shown beside the loss, see `flexgen.metrics.reconstruction_error`."""


def read_values(codes: Path) -> dict[str, Tensor]:
    """What a file of codes says of each sample, `(n,)`: its loss, errors, and more."""
    with safe_open(codes, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name != "z"}  # noqa: SIM118


def sum_up(
    done: Streamed, values: dict[str, Tensor], seconds: float, job: Job, num_own: int
) -> list[tuple[str, str]]:
    """Print how it went, beside so many of the generator's own samples reversed by the same
    settings; the same figures are returned by name."""
    with safe_open(done.codes, "pt") as file:
        how = file.metadata()["how"]
    own = _own(job, num_own)
    now = done.samples - done.before
    before = f"{done.before} were done before, " if done.before else ""
    before += "then " if now and before else "none are left" if before else ""
    speed = f"{now} samples in {seconds:.1f} s, {now / seconds:.3g}/s" if now else ""
    kind = loss_text(job.loss)
    names = {"loss": f"loss ({_LOSSES.get(kind, kind)} a sample)", **ERRORS}
    names["log_p"] = "log p(x), nats"
    facts = [
        ("method", how),
        ("reversed", before + speed),
        *((names[k], _spread(k, values[k], own.get(k))) for k in names if k in values),
    ]
    if (converged := values.get("converged")) is not None:
        share = 100 * float(converged.float().mean())
        facts.append(("converged", f"{share:.1f} % ({int(converged.sum())} of {done.samples})"))
    else:
        facts.append(("acceptance", f"{values['acceptance'].mean():.2f}, best near 0.65"))
    if not_finite := int((~values["loss"].isfinite()).sum()):
        facts.append(("not finite", f"the loss of {not_finite} samples"))
    for name, text in facts:
        print(f"{name}: {text}")
    return facts


_LOSSES = {"mse": "half the squared error", "bce": "cross-entropy, nats"}


def _own(job: Job, n: int) -> dict[str, Tensor]:
    """The errors of the generator's own samples: what the search itself leaves."""
    if not n:
        return {}
    given = (
        {} if job.context is None else {"context": job.context[torch.arange(n) % len(job.context)]}
    )
    find, options = job.way
    x, shape = job.samples(n), job.latent_shape
    found: dict[str, Tensor] = find(
        job.loaded.generator, x, latent_shape=shape, **given, **options
    ).tensors()
    return found


def _spread(name: str, values: Tensor, own: Tensor | None) -> str:
    finite = values[values.isfinite()].double().numpy()
    if not len(finite):
        return "none is finite"
    worse = 10 if name in ("psnr", "ssim", "log_p") else 90  # of these more is better
    median, tail = np.percentile(finite, [50, worse])
    floor = "" if own is None else f"; its own samples {own[own.isfinite()].mean():.4g}"
    return f"mean {finite.mean():.4g}, median {median:.4g}, {worse}th percentile {tail:.4g}{floor}"


def show_pairs(
    codes: Path, values: dict[str, Tensor], job: Job, facts: list[tuple[str, str]],
    asked: dict[str, Any],
) -> None:  # fmt: skip
    """Draw the worst, the best and some between: `pairs.png` and `pairs.html` beside the codes."""
    if len(job.probe.shape) != 3 or job.probe.shape[0] not in (1, 3):
        print("pairs: none drawn, for the samples are not images in grey or colour")
        return
    loss = values["loss"]
    ended = values.get("converged", torch.ones(len(loss)))  # draws always do
    groups = _groups(loss, asked["pairs"])
    rows = torch.cat(list(groups.values()))
    with safe_open(codes, "pt") as file:
        stored = file.get_slice("z")
        z = torch.cat([stored[row : row + 1] for row in rows.tolist()])
    order = rows.argsort()
    x = torch.empty(len(rows), *job.probe.shape)
    x[order] = job.reader.read(job.index[rows[order]])
    norm = job.options.get("norm", "eval")
    with torch.no_grad(), frozen(job.loaded.generator, norm):
        given = () if job.context is None else (job.context[job.index[rows]].to(job.device),)
        x_hat = job.loaded.generator(z.to(job.device, job.loaded.dtype), *given).float().cpu()
    if job.mask is not None:  # what the search did not see is grey
        x = x.masked_fill(~job.mask.cpu(), sum(job.range) / 2)
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
    errors = [{k: float(values[k][row]) for k in ERRORS if k in values} for row in rows.tolist()]
    pairs = iter(
        Pair(_png(a, b, job.range), name, float(loss[row]), bool(ended[row]) or not tested, e)
        for a, b, name, row, e in zip(x, x_hat, names, rows.tolist(), errors, strict=True)
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
