"""Which criterion to trust, as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

_MEASURES = (
    ("per_group", "within groups, mean"),
    ("raw", "over all channels, raw"),
    ("normalized", "over all channels, ℓ2-normalised"),
)


def agreement_page(found: Mapping[str, Any]) -> str:
    """What the oracle measured and how well each criterion guesses it, as an HTML page.

    The page needs no network: the drawing library is part of it. Every figure has its numbers in a table.

    Args:
        found: what ``secateur oracle`` writes: ``changes`` by group, ``loss``, ``examples``, ``model`` and
            the ``agreement`` of each criterion.

    Returns:
        The page.
    """
    rows = sorted(found["agreement"], key=lambda row: -(row["normalized"] or 0.0))
    environment = Environment(
        loader=PackageLoader("secateur.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
    )
    return environment.get_template("agreement.html").render(
        model=found["model"],
        loss=found["loss"],
        examples=found["examples"],
        channels=sum(len(values) for values in found["changes"].values()),
        rows=rows,
        measures=_MEASURES,
        groups=[_summary(name, values) for name, values in found["changes"].items()],
        correlations=_html(_correlations(rows), with_library=True),
        changes=_html(_changes(found["changes"])),
        unmeasured=found["unmeasured"],
    )


def _correlations(rows: list[Mapping[str, Any]]) -> go.Figure:
    figure = go.Figure()
    for key, label in _MEASURES:
        figure.add_bar(name=label, x=[row["criterion"] for row in rows], y=[row[key] for row in rows])
    figure.update_layout(barmode="group", yaxis={"title": "Spearman's rank correlation", "range": [-1, 1]})
    return figure


def _changes(changes: Mapping[str, list[float | None]]) -> go.Figure:
    figure = go.Figure()
    for name, values in changes.items():
        figure.add_box(name=name, y=values, boxpoints="all", jitter=0.6, pointpos=0, marker={"size": 3})
    figure.update_layout(showlegend=False, yaxis={"title": "change of the loss without the channel"})
    return figure


def _html(figure: go.Figure, *, with_library: bool = False) -> str:
    """A figure as HTML that takes its colours from the page."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#808080"},
        margin={"l": 60, "r": 20, "t": 20, "b": 80},
        legend={"orientation": "h", "y": 1.1},
    )
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=with_library,
        config={"displaylogo": False, "responsive": True},
        default_height="420px",
    )
    return html


def _summary(name: str, values: list[float | None]) -> dict[str, Any]:
    known = sorted(value for value in values if value is not None)
    ends = (known[0], known[len(known) // 2], known[-1]) if known else (None, None, None)
    least, middle, most = ends
    return {"name": name, "channels": len(values), "least": least, "middle": middle, "most": most}
