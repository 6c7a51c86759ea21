"""Measures the codes of held-out data under the untrained generator (figure 2, left).

    python experiments/flexible_prior/untrained.py experiment=flexible_prior/codes seed=0,1,2

Takes the overrides of `flexgen train`, of which choices make a grid, and builds the same generator
with the same weights, but trains nothing: batch norm is calibrated on draws from the prior, then
the experiment's measurements of codes run as they do in training.
"""

import sys
from collections.abc import Iterator

import torch

import flexgen
from flexgen.reversal import calibrate_batch_norm
from flexgen.runs.compose import grid
from flexgen.runs.folder import write_config, write_final, write_provenance
from flexgen.training import CSVLogger

MEASUREMENTS = ("reversal", "code_map", "disagreement", "spectrum")


def untrained_runs(
    words: list[str], command: str
) -> Iterator[tuple[flexgen.Run, dict[str, float]]]:
    """Runs of no steps, each with a dict for what is measured of it, which is then saved."""
    for overrides in grid(words):
        config = flexgen.compose(overrides)
        noted = config.pop("overrides")
        run = flexgen.Run(config).build()
        write_config(run.folder, config)
        write_provenance(run.folder, command, noted, config["seed"], None)
        # The trainer would choose the device, but nothing is trained.
        on_gpu = config["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
        model = run.model.to("cuda" if on_gpu else "cpu")
        calibrate_batch_norm(model.decoder, model.prior().sample((4096,)), batch_size=512)
        values: dict[str, float] = {}
        yield run, values
        axes = model.counters.axes()
        logger = CSVLogger(str(run.folder))
        logger.log_metrics(axes | values)
        logger.save()
        write_final(run.folder, axes)
        for name, value in values.items():
            print(f"{name}: {value:.4g}")
        print(f"run: {run.folder}")


def main(words: list[str]) -> None:
    for run, values in untrained_runs(words, "untrained"):
        for name in MEASUREMENTS:
            if name in run.measurements:
                values |= run.measurements[name].run(run.model, run.data, run.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
