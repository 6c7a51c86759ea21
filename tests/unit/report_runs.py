"""Run directories made up for the tests of the report, in the form that training writes."""

import csv
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from flexgen import __version__

Row = Mapping[str, float | str]


def write_run(
    path: Path,
    rows: Sequence[Row] = ({"generator_steps": 10, "loss/critic": 1.0},),
    *,
    overrides: Sequence[str] = (),
    seed: int = 0,
    finished: bool = True,
    config: Mapping[str, Any] | None = None,
    final: Mapping[str, float] | None = None,
) -> Path:
    """A run whose `metrics.csv` has those rows; counters follow from `generator_steps`."""
    path.mkdir(parents=True)
    base = {"name": "toy", "seed": seed, "steps": 100, "latent_dim": 2, "model": {"lr": 0.001}}
    (path / "config.yaml").write_text(yaml.safe_dump({**base, **(config or {})}, sort_keys=False))
    provenance = {
        "command": "train",
        "overrides": list(overrides),
        "seed": seed,
        "versions": {"flexgen": __version__, "torch": "2.15.0"},
        "commit": "0123abc",
        "parent": None,
        "started": "2026-01-01T10:00:00+00:00",
        "finished": "2026-01-01T10:03:20+00:00" if finished else None,
        "machine": {"cpu": "a CPU", "cores": 2, "gpu": None},
    }
    (path / "provenance.json").write_text(json.dumps(provenance))
    write_metrics(path, rows)
    if finished or final is not None:
        last: dict[str, Any] = {}
        for row in rows:
            last.update(row)
        step = last.pop("generator_steps", 0)
        content = {"counters": counters(step), "values": {**last, **(final or {})}}
        (path / "metrics.json").write_text(json.dumps(content))
    return path


def counters(step: float) -> dict[str, int]:
    step = int(step)
    return {
        "batches": 6 * step,
        "critic_steps": 5 * step,
        "generator_steps": step,
        "images_seen": 320 * step,
    }


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "generator_steps"))
    with (path / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*counters(0), *names])
        writer.writeheader()
        for row in rows:
            step = row["generator_steps"]
            assert not isinstance(step, str)
            writer.writerow({**counters(step), **row})


def refit_rows(
    *, kept: bool = True, control: bool = False, steps: int = 4000, every: int = 100, seed: int = 0
) -> list[dict[str, float | str]]:
    """What a run with a refit half-way logs, or its control: losses, evaluations, the refit."""
    noise = np.random.default_rng(seed)
    rows: list[dict[str, float | str]] = []
    for step in range(every, steps + 1, every):
        if control and step <= steps // 2:
            continue
        late = step > steps // 2
        stage = int(late and kept and not control)
        rows.append(
            {
                "generator_steps": step,
                "loss/critic": -3 * np.exp(-step / steps) + 0.2 * noise.normal(),
                "loss/generator": np.sin(step / 400) + 0.3 * noise.normal(),
                "loss/penalty": 40 * np.exp(-step / 200) + 0.05 + 0.01 * abs(noise.normal()),
            }
        )
        if step % (steps // 8) == 0:
            pag = (0.4 if stage else 1.9) + 1.5 * np.exp(-step / 800) + 0.03 * noise.normal()
            rows.append(
                {
                    "generator_steps": step,
                    "pag/unit": pag,
                    "pag/unit_low": pag - 0.11,
                    "pag/unit_high": pag + 0.13,
                    "pag/literal": 9800 + 50 * pag,
                    "pag/kl": pag * 1.2,
                    "pag/kl_mean": pag * 0.2,
                    "reversal/error": 2.1 * np.exp(-step / 2000) + 0.4,
                    "reversal/converged": 0.97,
                    "own/pag_reversed": 0.3 + 0.02 * noise.normal(),
                    "own/pag_true": 0.01 * noise.normal(),
                    "own/error": 0.2,
                    "emd/samples": (2.3 if stage else 2.6) + 2 * np.exp(-step / 700),
                    "emd/floor": 1.9,
                    "prior/stage": stage,
                }
            )
        if step == steps // 2 and not control:
            rows.append(
                {
                    "generator_steps": step,
                    "refit/energy_before": 0.8,
                    "refit/energy_after": 0.3 if kept else 0.9,
                    "refit/kept": int(kept),
                    "prior/stage": int(kept),
                }
            )
    return rows


def write_refit_run(path: Path, *, kept: bool = True, control: bool = True, **how: Any) -> Path:
    """A run with a refit, images, codes, and a control beside it."""
    write_run(path, refit_rows(kept=kept), **how)
    if control:
        write_run(path / "control", refit_rows(control=True), **how)
        write_png(path / "control/images/samples/step=00004000.png", seed=5)
    for step in range(500, 4001, 500):
        write_png(path / f"images/samples/step={step:08}.png", seed=step)
    for kind in ("code_map", "spectrum", "disagreement", "reconstructions"):
        for step in (2000, 4000):
            write_png(path / f"images/{kind}/step={step:08}.png", width=480, height=360, seed=step)
    (path / "codes").mkdir()
    codes = {"z": np.zeros((3, 2), np.float32), "singular_values": np.ones(2, np.float32)}
    about = {"n": "3", "sigma": "1.0", "optimiser": "adam", "steps": "300", "space": "base"}
    save_file(codes, path / "codes/step=00004000.safetensors", metadata=about)
    return path


def write_png(path: Path, width: int = 64, height: int = 64, seed: int = 0) -> Path:
    """A small grey picture, written without an image library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(size=(9, 9))
    y, x = np.mgrid[0:height, 0:width] / max(width, height) * 8
    picture = noise[y.astype(int), x.astype(int)]
    grey = (255 / (1 + np.exp(-2 * picture))).astype(np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in grey)

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path
