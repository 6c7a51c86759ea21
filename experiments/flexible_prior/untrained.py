"""Measures the codes of held-out data under the untrained generator (figure 2, left).

    python experiments/flexible_prior/untrained.py -m experiment=flexible_prior/codes seed=0,1,2

Takes the overrides of `flexgen train`, also with -m, and builds the same generator with the same
weights, but trains nothing: batch norm is calibrated on draws from the prior, then the
experiment's measurements of codes run as they do in training.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

from flexgen.reversal import calibrate_batch_norm
from flexgen.runs.build import Parts, build
from flexgen.runs.compose import plain, run_hydra, task_overrides
from flexgen.runs.folder import write_config, write_final, write_provenance
from flexgen.training import CSVLogger

MEASUREMENTS = ("reversal", "code_map", "disagreement", "spectrum")


@contextmanager
def untrained_run(cfg: DictConfig, command: str) -> Iterator[tuple[Parts, Path, dict[str, float]]]:
    """A run of no steps: its parts, its directory, and a dict for what is measured, then saved."""
    config = plain(cfg)
    run_dir = Path(config["paths"]["run_dir"])
    parts = build(config)
    write_config(run_dir, config)
    write_provenance(run_dir, command, task_overrides(), config["seed"], None)
    # The trainer would choose the device, but nothing is trained.
    on_gpu = config["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
    model = parts.model.to("cuda" if on_gpu else "cpu")
    calibrate_batch_norm(model.decoder, model.prior().sample((4096,)), batch_size=512)
    values: dict[str, float] = {}
    yield parts, run_dir, values
    axes = model.counters.axes()
    logger = CSVLogger(str(run_dir))
    logger.log_metrics(axes | values)
    logger.save()
    write_final(run_dir, axes)
    for name, value in values.items():
        print(f"{name}: {value:.4g}")
    print(f"run: {run_dir}")


def main(cfg: DictConfig) -> None:
    with untrained_run(cfg, "untrained") as (parts, run_dir, values):
        for name in MEASUREMENTS:
            if name in parts.measurements:
                values |= parts.measurements[name].run(parts.model, parts.data, run_dir)


if __name__ == "__main__":
    run_hydra("train", sys.argv[1:], main)
