"""Write pages that show results, each as a single HTML file."""

from __future__ import annotations

from secateur.report.agreement import agreement_page
from secateur.report.page import run_page, write_report

__all__ = ["agreement_page", "run_page", "write_report"]
