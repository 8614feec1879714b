"""Which layers each group touches: a graph of groups and layers, drawn along the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from secateur.jobs.portrait import GroupPortrait
from secateur.report.drawings.axes import across, down
from secateur.report.shell import CYCLE, MUTED, Drawing, drawing, plain

_MARKS = (
    ("written_by", "writes", "square", 10),
    ("carried_by", "holds something for each", "line-ns-open", 9),
    ("read_by", "reads", "circle-open", 9),
)


def coupling(groups: Sequence[GroupPortrait], layers: Iterable[str]) -> Drawing:
    """A line for each group through the layers that it couples.

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
    traces = [_line(group, colours[group.name], place) for group in groups if len(group.modules) > 1]
    traces += [_marks(groups, colours, *mark) for mark in _MARKS]
    layout = {
        "xaxis": across(listed),
        "yaxis": down([group.name for group in groups]),
        "hovermode": "closest",
        "meta": {"line": 24},
    }
    label = "The layers that each channel group couples: a line for each group, a mark at each layer"
    return drawing("coupling", label, traces, layout)


def _line(group: GroupPortrait, colour: str, place: dict[str, int]) -> dict[str, Any]:
    along = sorted(group.modules, key=place.__getitem__)
    return {
        "type": "scatter",
        "mode": "lines",
        "showlegend": False,
        "hoverinfo": "skip",
        "x": [along[0], along[-1]],
        "y": [group.name, group.name],
        "line": {"color": colour, "width": 1.5},
        "meta": {"names": [group.name, group.name]},
    }


def _marks(
    groups: Sequence[GroupPortrait], colours: dict[str, str], role: str, verb: str, symbol: str, size: int
) -> dict[str, Any]:
    points = [(group, module) for group in groups for module in getattr(group, role)]
    colour = [colours[group.name] for group, _ in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": verb,
        "x": [module for _, module in points],
        "y": [group.name for group, _ in points],
        "customdata": [f"<b>{plain(module)}</b> {verb}<br>{plain(group.name)}" for group, module in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": colour,
            "symbol": symbol,
            "size": size,
            "line": {"width": 2, "color": colour},
        },
        "meta": {"names": [group.name for group, _ in points]},
    }
