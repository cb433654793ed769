"""Reports: the numbers of a stage as a folder with a page, pictures and JSON."""

from simtool.report.evaluation import evaluate
from simtool.report.folder import check_folder, write_report

__all__ = ["check_folder", "evaluate", "write_report"]
