"""`flexgen report runs/…`: one self-contained HTML page a run."""

import argparse


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "flexgen report",
        description="Write report.html into each run: curves, samples, codes, PAG with its "
        "interval, configuration and provenance, in one file; for a folder of runs an index too.",
    )
    parser.add_argument("runs", nargs="+", help="run directories, or folders of them")
    asked = parser.parse_args(argv)
    from flexgen.report import write_reports

    for page in write_reports(asked.runs):
        print(f"report: {page}")
