"""`flexgen report runs/…`: one self-contained HTML page a run."""

import argparse


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "flexgen report",
        description="Write report.html into each run: curves, samples, codes, PAG with its "
        "interval, configuration and provenance, in one file.",
    )
    parser.add_argument("runs", nargs="+", help="run directories")
    from flexgen.report import write_report

    for run in parser.parse_args(argv).runs:
        print(f"report: {write_report(run)}")
