"""Draw the difference of each cut network from the masked original."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.report.course import CutMade
from secateur.report.rendering import AFTER, GONE, Drawing, drawing

_LEAST = 1e-12
"""Position of a difference of zero, on an axis that has no zero."""


def verification(cuts: Sequence[CutMade]) -> Drawing:
    """Draw the largest relative difference of every cut, and its tolerance.

    Args:
        cuts: all cuts of the run.
    """
    checks = [cut.verification for cut in cuts]
    numbers = list(range(1, len(cuts) + 1))
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "largest relative difference",
            "x": numbers,
            "y": [max(check.max_error, _LEAST) for check in checks],
            "customdata": [
                f"cut {cut.number}: {cut.channels:,} channels, "
                f"{'verified' if check.ok else 'NOT VERIFIED'}<br>"
                f"difference {check.max_error:.1e} over {check.outputs:,} numbers"
                for cut, check in zip(cuts, checks, strict=True)
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {"color": [AFTER if check.ok else GONE for check in checks], "size": 9},
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "allowed",
            "x": [0.5, *numbers, len(cuts) + 0.5],
            "y": [check.tolerance for check in (checks[0], *checks, checks[-1])],
            "hoverinfo": "skip",
            "line": {"color": GONE, "width": 1.5, "dash": "dash"},
        },
    ]
    layout = {
        "xaxis": {"title": {"text": "cut"}, "tickformat": ",d", "range": [0.5, len(cuts) + 0.5]},
        "yaxis": {"type": "log", "exponentformat": "power", "title": {"text": "relative difference"}},
        "meta": {"height": 300},
    }
    return drawing("verification", "Largest relative difference of every cut", traces, layout)
