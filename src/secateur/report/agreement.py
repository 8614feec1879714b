"""Write a page that compares criteria with measured changes of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.drawings.axes import down
from secateur.report.rendering import AFTER, BEFORE, CYCLE, Drawing, drawing, plain, render

_MEASURES = (
    ("per_group", "within groups, mean"),
    ("raw", "over all channels, raw"),
    ("normalized", "over all channels, ℓ2-normalised"),
)


def agreement_page(found: Mapping[str, Any]) -> str:
    """Format the oracle's measurements and the rank correlation of each criterion as an HTML page.

    The page needs no connection: it contains the drawing library. The numbers of every figure are in a table
    too.

    Args:
        found: the output of ``secateur oracle``: ``changes`` by group, ``loss``, ``examples``, ``model`` and
            the ``agreement`` of each criterion.

    Returns:
        The page.
    """
    rows = sorted(found["agreement"], key=lambda row: -(row["normalized"] or 0.0))
    return render(
        "agreement.html",
        [_correlations(rows), _changes(found["changes"])],
        model=found["model"],
        loss=found["loss"],
        examples=found["examples"],
        channels=sum(len(values) for values in found["changes"].values()),
        rows=rows,
        measures=_MEASURES,
        groups=[_summary(name, values) for name, values in found["changes"].items()],
        unmeasured=found["unmeasured"],
    )


def _correlations(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    colours = (BEFORE, CYCLE[1], AFTER)
    data = [
        {
            "type": "bar",
            "name": label,
            "x": [plain(row["criterion"]) for row in rows],
            "y": [row[key] for row in rows],
            "hovertemplate": "%{x}: %{y:.3f}<extra></extra>",
            "marker": {"color": colour},
        }
        for (key, label), colour in zip(_MEASURES, colours, strict=True)
    ]
    layout = {
        "barmode": "group",
        "xaxis": {"type": "category"},
        "yaxis": {"title": {"text": "rank correlation"}, "range": [-1, 1]},
    }
    return drawing("correlations", "Bars of the rank correlations", data, layout)


def _changes(changes: Mapping[str, Sequence[float | None]]) -> Drawing:
    points = [(name, value) for name, values in changes.items() for value in values if value is not None]
    box = {
        "type": "box",
        "orientation": "h",
        "showlegend": False,
        "x": [value for _, value in points],
        "y": [name for name, _ in points],
        "boxpoints": "all",
        "jitter": 0.6,
        "pointpos": 0,
        "line": {"color": AFTER, "width": 1},
        "marker": {"color": AFTER, "size": 3},
        "fillcolor": "rgba(0,0,0,0)",
        "meta": {"names": "y"},
    }
    layout = {
        "xaxis": {"title": {"text": "change of the loss without the channel"}},
        "yaxis": down(list(changes)),
        "meta": {"line": 44},
    }
    return drawing("changes", "The change of the loss for every channel, by group", [box], layout)


def _summary(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    known = sorted(value for value in values if value is not None)
    ends = (known[0], known[len(known) // 2], known[-1]) if known else (None, None, None)
    least, middle, most = ends
    return {"name": name, "channels": len(values), "least": least, "middle": middle, "most": most}
