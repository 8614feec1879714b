"""Draw time, multiplications and parameters by layer, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.jobs.network_summary import LayerCost, LayerSummary
from secateur.report.drawings.axes import ITSELF, down
from secateur.report.rendering import AFTER, BEFORE, Drawing, plain

_SHOWN, _LEAST = 40, 0.002
"""Largest number of layers with a separate bar, and the least share of the whole of such a layer."""
_KINDS = (
    ("milliseconds", "ms", ".3~g", "ms"),
    ("MACs per example", "macs", ".3~s", ""),
    ("parameters", "params", ".3~s", ""),
)


def layer_costs(layers: Sequence[LayerSummary]) -> Drawing:
    """Draw bars of the costs of each layer, the whole network in one figure.

    Args:
        layers: in the order of the network.
    """
    variants = {title: _variant(layers, title, *rest) for title, *rest in _KINDS}
    return Drawing("layers", "Costs of each layer before and after, in forward order", variants)


def _costliest(layers: Sequence[LayerSummary], key: str) -> tuple[list[LayerSummary], list[LayerSummary]]:
    """Divide the layers into those with a separate bar and all others.

    Args:
        layers: in the order of the network.
        key: ``ms``, ``macs`` or ``params``.

    Returns:
        Both in the order of the network, without layers whose cost is zero.
    """
    known = [layer for layer in layers if _of(layer.before, key) or _of(layer.after, key)]
    total = sum(_of(layer.before, key) for layer in known)
    costly = sorted(known, key=lambda layer: -_of(layer.before, key))[:_SHOWN]
    names = {layer.name for layer in costly if _of(layer.before, key) >= _LEAST * total}
    shown = [layer for layer in known if layer.name in names]
    return shown, [layer for layer in known if layer.name not in names]


def _variant(layers: Sequence[LayerSummary], title: str, key: str, form: str, unit: str) -> dict[str, Any]:
    shown, rest = _costliest(layers, key)
    rows = [
        (layer.name or ITSELF, layer.kind, _of(layer.before, key), _of(layer.after, key)) for layer in shown
    ]
    if rest:
        rows.append(
            (
                f"{len(rest)} smaller ones",
                "all in the table",
                sum(_of(layer.before, key) for layer in rest),
                sum(_of(layer.after, key) for layer in rest),
            )
        )
    traces = []
    for side, name, colour in ((2, "before", BEFORE), (3, "after", AFTER)):
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": [row[0] for row in rows],
                "x": [row[side] for row in rows],
                "customdata": [f"<b>{plain(row[0])}</b> ({plain(row[1])})" for row in rows],
                "hovertemplate": f"%{{customdata}}<br>{name}: %{{x:{form}}} {unit}<extra></extra>",
                "marker": {"color": colour},
                "meta": {"names": "y"},
            }
        )
    layout = {
        "barmode": "group",
        "bargap": 0.25,
        "bargroupgap": 0.05,
        "xaxis": {"title": {"text": title}, "tickformat": "~s" if key != "ms" else ""},
        "yaxis": down([row[0] for row in rows]),
        "meta": {"line": 28},
    }
    return {"data": traces, "layout": layout}


def _of(costs: LayerCost, key: str) -> float:
    return float(getattr(costs, key) or 0)
