"""Samples before the refit, after it, and of the control, side by side.

    python experiments/demo/picture.py runs/demo/… experiments/demo/samples.png

The three grids draw the same noise. The run must have pictured its samples at the refit's step.
"""

import sys
from pathlib import Path

from flexgen.drawing import draw_figure
from flexgen.report import RunFiles, compare


def main(run_dir: str, target: str) -> None:
    from matplotlib.image import imread

    run = RunFiles.load(run_dir)
    comparison = compare(run)
    if comparison is None:
        raise SystemExit(f"{run_dir} has no refit to compare; name a run of experiment=demo")
    points = comparison.points["emd/samples"]
    folders = {"before": run.path, "after": run.path, "control": run.path / "control"}

    def draw(figure: object) -> None:
        axes = figure.subplots(1, 3)  # type: ignore[attr-defined]
        for ax, (when, folder) in zip(axes, folders.items(), strict=True):
            point = points[when]
            ax.imshow(imread(folder / "images" / "samples" / f"step={point.step:08d}.png"))
            ax.set_title(f"{when}, step {point.step}: EMD {point.value:.3f}", fontsize=10)
            ax.set_axis_off()

    draw_figure(draw, Path(target), size=(10.0, 3.6))


if __name__ == "__main__":
    main(*sys.argv[1:])
