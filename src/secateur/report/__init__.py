"""Pages that show what was found out: one HTML file each, which needs nothing else."""

from __future__ import annotations

from secateur.report.agreement import agreement_page
from secateur.report.page import run_page, write_report
from secateur.report.paper import write_figures

__all__ = ["agreement_page", "run_page", "write_figures", "write_report"]
