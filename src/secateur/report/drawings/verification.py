"""Draw the difference of each cut network from the masked original."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.report.course import CutMade
from secateur.report.shell import AFTER, GONE, Drawing, drawing

_LEAST = 1e-12
"""Position of a difference of zero, on an axis that has no zero."""


def verification(cuts: Sequence[CutMade]) -> Drawing:
    """Draw the largest relative difference of every cut, and its tolerance.

    Args:
        cuts: all cuts of the run.
    """
    numbers = list(range(1, len(cuts) + 1))
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "largest relative difference",
            "x": numbers,
            "y": [max(cut.max_error, _LEAST) for cut in cuts],
            "customdata": [
                f"cut {cut.number}: {cut.channels:,} channels, {'verified' if cut.ok else 'NOT VERIFIED'}<br>"
                f"difference {cut.max_error:.1e} over {cut.outputs:,} numbers"
                for cut in cuts
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {"color": [AFTER if cut.ok else GONE for cut in cuts], "size": 9},
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "allowed",
            "x": [0.5, *numbers, len(cuts) + 0.5],
            "y": [cut.tolerance for cut in (cuts[0], *cuts, cuts[-1])],
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
