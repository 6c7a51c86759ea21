"""`flexgen table multirun/…`: mean ± std over seeds, as text, CSV, LaTeX and a plot."""

import argparse


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "flexgen table",
        description="Mean ± std over seeds of all runs below the given folders, grouped by the "
        "overrides that they were started with.",
    )
    parser.add_argument("paths", nargs="+", help="runs, or folders of runs")
    parser.add_argument("--metrics", nargs="+", help="which metrics, as in metrics.csv")
    parser.add_argument(
        "--last", type=int, default=1, metavar="K", help="mean of each run's last K values (1)"
    )
    parser.add_argument(
        "--comparison", action="store_true", help="before, after and control of runs with a refit"
    )
    parser.add_argument("--out", help="folder for table.csv, table.tex and table.png (first path)")
    asked = parser.parse_args(argv)
    from flexgen.report import write_table

    write_table(
        asked.paths,
        metrics=asked.metrics,
        last=asked.last,
        comparison=asked.comparison,
        out=asked.out,
    )
