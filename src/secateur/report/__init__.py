"""Pages that show what was found out: one HTML file each, which needs nothing else."""

from __future__ import annotations

from secateur.report.agreement import agreement_page

__all__ = ["agreement_page"]
