"""`flexgen evaluate run=…`: every measurement of a run once more, on its last checkpoint."""

from pathlib import Path

from omegaconf import DictConfig

from flexgen.runs.compose import plain, run_hydra
from flexgen.runs.imports import importing


def main(argv: list[str]) -> None:
    run_hydra("evaluate", argv, _evaluate, on_run=True)


def _evaluate(cfg: DictConfig) -> None:
    checkpoint = cfg.checkpoint
    config = plain(cfg)
    with importing():
        from flexgen.report import print_values
        from flexgen.runs.build import load_trained
        from flexgen.runs.folder import write_json

    run_dir = Path(config["paths"]["run_dir"])
    parts = load_trained(config, run_dir, checkpoint)
    values: dict[str, float] = {}
    for measurement in parts.measurements.values():
        measurement.check(parts.model, parts.data)
    for measurement in parts.measurements.values():
        values |= measurement.run(parts.model, parts.data, run_dir)
    counters = parts.model.counters.axes()
    print_values(values, f"{parts.checkpoint}")
    path = run_dir / "evaluation.json"
    write_json(path, {"checkpoint": str(parts.checkpoint), "counters": counters, "values": values})
    print(f"values: {path}")
