"""Differences between settings that share their seeds, with standard error and tests.

    python experiments/paired.py multirun/… --metric emd/samples --last 5 --by prior --base uniform
    python experiments/paired.py nll.csv --where epoch=30 --metric nll --by row --base base

A CSV file has one line a seed, with the columns `seed`, the one that tells the settings apart and
the metric. Folders of runs are read as `flexgen table` reads them; `--csv` writes their values as
such a file, for the means that `flexgen table` writes no longer tell which seeds belong together.

Of the differences d of n seeds: mean ± std/√n; Student's t over n − 1 degrees of freedom; the
permutation of signs, exact up to 13 seeds; all two-sided. The interval is Student's, 95 %.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy import stats

from flexgen.report import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", type=Path, help="CSV files, or folders of runs")
    parser.add_argument("--metric", required=True)
    parser.add_argument("--by", required=True, help="column or key that tells the settings apart")
    parser.add_argument("--base", required=True, help="its value in the setting to compare with")
    parser.add_argument("--where", nargs="*", default=[], help="column=value that lines must have")
    parser.add_argument("--last", type=int, default=1, help="as of `flexgen table` (1)")
    parser.add_argument("--comparison", action="store_true", help="as of `flexgen table`")
    parser.add_argument("--csv", type=Path, help="file for the values of folders of runs")
    asked = parser.parse_args()
    files = [path for path in asked.sources if path.is_file()]
    lines = [line for path in files for line in csv.DictReader(path.read_text().splitlines())]
    if folders := [path for path in asked.sources if path not in files]:
        lines += of_runs(folders, asked.metric, asked.last, asked.comparison)
    if asked.csv:
        with asked.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    for wanted in asked.where:
        key, _, value = wanted.partition("=")
        lines = [line for line in lines if line[key] == value]
    settings: dict[str, dict[str, float]] = {}
    for line in lines:
        values = settings.setdefault(line[asked.by], {})
        if line["seed"] in values:
            parser.error(f"seed {line['seed']} of {line[asked.by]} stands twice; add --where")
        values[line["seed"]] = float(line[asked.metric])
    if asked.base not in settings:
        parser.error(f"--base must be one of {', '.join(settings)}; got {asked.base}")
    base = settings.pop(asked.base)
    for name, values in settings.items():
        shared = [seed for seed in values if seed in base]
        print(f"{name} less {asked.base}: {tested([values[s] - base[s] for s in shared])}")


def of_runs(folders: list[Path], metric: str, last: int, comparison: bool) -> list[dict[str, str]]:
    """A line a run: its settings, its seed and its value of the metric."""
    rows = table(folders, metrics=[metric], last=last, comparison=comparison).rows
    return [
        {**row.settings, "seed": str(seed), metric: f"{value:.6g}"}
        for row in rows
        for seed, value in zip(row.seeds, row.cells[metric].values, strict=True)
    ]


def tested(differences: list[float]) -> str:
    d = np.array(differences)
    if len(d) < 2:
        return f"n = {len(d)}, no test"
    t = stats.ttest_1samp(d, 0.0)
    low, high = t.confidence_interval()
    signs = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    )
    return (
        f"{d.mean():+.4g} ± {stats.sem(d):.2g} (95 %: {low:+.4g} to {high:+.4g}), n = {len(d)}, "
        f"below 0 in {(d < 0).sum()}; t = {t.statistic:.2f}, p = {t.pvalue:.2g}, "
        f"of signs {signs.pvalue:.2g}"
    )


if __name__ == "__main__":
    main()
