"""Reports on runs: one self-contained HTML page a run, and tables over many runs.

Everything here reads run directories and nothing else: no model is loaded.
"""

from flexgen.report.comparison import Comparison, compare
from flexgen.report.curves import Curve, RunError, Value
from flexgen.report.index import write_reports
from flexgen.report.page import write_report
from flexgen.report.priors import PriorRow, PriorTable
from flexgen.report.run_files import RunFiles, find_runs
from flexgen.report.summary import Table
from flexgen.report.table import table
from flexgen.report.terminal import print_comparison, print_priors, print_values, write_table

__all__ = [
    "Comparison", "Curve", "PriorRow", "PriorTable", "RunError", "RunFiles", "Table", "Value",
    "compare", "find_runs", "print_comparison", "print_priors", "print_values", "table",
    "write_report", "write_reports", "write_table",
]  # fmt: skip
