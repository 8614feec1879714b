"""Draw the layers that each group couples, in the order of the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from secateur.jobs.network_summary import GroupSummary
from secateur.report.drawings.axes import across, down
from secateur.report.rendering import CYCLE, MUTED, Drawing, drawing, plain

_MARKS = (
    ("written_by", "writes", "square", 10, 0),
    ("carried_by", "has a parameter for each", "line-ns-open", 9, 2),
    ("read_by", "reads", "circle-open", 9, 2),
)
_MANY, _SMALL = 120, 6
"""Number of layers from which on marks are small, and their size."""


def coupling(groups: Sequence[GroupSummary], layers: Iterable[str]) -> Drawing:
    """Draw a line for each group through the layers that it couples.

    Args:
        groups: all groups.
        layers: paths of the network's modules, in forward order.
    """
    order = {name: place for place, name in enumerate(layers)}
    touched = dict.fromkeys(name for group in groups for name in group.modules)
    listed = sorted(touched, key=lambda name: order.get(name, len(order)))
    place = {name: number for number, name in enumerate(listed)}
    colours = {
        group.name: MUTED if group.frozen is not None else CYCLE[number % len(CYCLE)]
        for number, group in enumerate(groups)
    }
    traces = [
        _lines([group for group in groups if colours[group.name] == colour], colour, place)
        for colour in dict.fromkeys(colours.values())
    ]
    for role, verb, symbol, size, line in _MARKS:
        size = size if len(listed) < _MANY else _SMALL
        shape = {"symbol": symbol, "size": size, "line": {"width": line}}
        traces.append(_marks(groups, colours, role, verb, shape))
    layout = {
        "xaxis": across(listed),
        "yaxis": down([group.name for group in groups]),
        "hovermode": "closest",
        "meta": {"line": 24, "column": 2},
    }
    label = "The layers that each channel group couples: a line for each group, a mark at each layer"
    return drawing("coupling", label, traces, layout)


def _lines(groups: Sequence[GroupSummary], colour: str, place: dict[str, int]) -> dict[str, Any]:
    """Draw the groups of one colour, each from its first layer to its last, separated by gaps."""
    x: list[str | None] = []
    y: list[str] = []
    for group in groups:
        along = sorted(group.modules, key=place.__getitem__)
        x += [along[0], along[-1], None] if along else []
        y += [group.name] * 3 if along else []
    return {
        "type": "scatter",
        "mode": "lines",
        "showlegend": False,
        "hoverinfo": "skip",
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 1.5},
        "meta": {"names": "y"},
    }


def _marks(
    groups: Sequence[GroupSummary], colours: dict[str, str], role: str, verb: str, shape: dict[str, Any]
) -> dict[str, Any]:
    points = [(group, module) for group in groups for module in getattr(group, role)]
    colour = [colours[group.name] for group, _ in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": verb,
        "x": [module for _, module in points],
        "y": [group.name for group, _ in points],
        "customdata": [plain(module) for _, module in points],
        "text": [plain(group.name) for group, _ in points],
        "hovertemplate": f"<b>%{{customdata}}</b> {verb}<br>%{{text}}<extra></extra>",
        "marker": {**shape, "color": colour},
        "meta": {"names": "y"},
    }
