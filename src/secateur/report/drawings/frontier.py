"""Draw the trade-off between cost and accuracy, or another metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.records import Records
from secateur.report.rendering import AFTER, GONE, INK, MUTED, Drawing, plain
from secateur.training.metrics import MetricKind


def frontier(records: Records) -> Drawing | None:
    """Draw the metric of each point of a frontier against its cost, with standard errors.

    Args:
        records: of the run.

    Returns:
        The figure, or ``None`` if the run is no frontier.
    """
    found = records.summary.get("frontier")
    if not found:
        return None
    variants, metric = {}, records.metric
    for title, key in (
        ("MACs per example", "macs"),
        ("parameters", "params"),
        ("milliseconds", "latency_ms"),
    ):
        whole, *costs = (_cost(point, key) for point in (found["baseline"], *found["points"]))
        points = [
            (cost, point) for cost, point in zip(costs, found["points"], strict=True) if cost is not None
        ]
        if not points:
            continue
        layout = {
            "xaxis": {"title": {"text": title}, "tickformat": "~s", "rangemode": "tozero"},
            "yaxis": {"title": {"text": metric.title}, "tickformat": metric.tick_format},
            "shapes": [_line(model[key]) for model in found["smaller_models"] if key in model],
            "annotations": [_name(model, key) for model in found["smaller_models"] if key in model],
        }
        traces = [_points("cut and reconstructed, not trained", points, metric, AFTER, "circle")]
        if whole is not None:
            before = [(whole, found["baseline"])]
            traces.append(_points("the network as it is", before, metric, GONE, "diamond"))
        variants[title] = {"data": traces, "layout": layout}
    label = f"{metric.title.capitalize()} against cost at several budgets; bars are standard errors"
    return Drawing("frontier", label, variants)


def _cost(point: Mapping[str, Any], key: str) -> float | None:
    """Return a cost of a point; ``None`` if it was not measured."""
    cost = point[key] if key == "latency_ms" else point["cost"][key]
    return None if cost is None else float(cost)


def _line(cost: float) -> dict[str, Any]:
    """Draw the cost of a smaller network of the same family as a line; its accuracy is not known."""
    line = {"color": MUTED, "width": 1, "dash": "dot"}
    return {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": cost, "x1": cost, "line": line}


def _name(model: Mapping[str, Any], key: str) -> dict[str, Any]:
    text = {"text": plain(model["name"].partition(":")[2]), "textangle": -90, "font": {"color": MUTED}}
    return {
        "x": model[key],
        "y": 0,
        "yref": "paper",
        "yanchor": "bottom",
        "xanchor": "right",
        **text,
        "showarrow": False,
    }


def _points(
    name: str,
    points: Sequence[tuple[float, Mapping[str, Any]]],
    metric: MetricKind,
    colour: str,
    symbol: str,
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers+text",
        "name": name,
        "x": [cost for cost, _ in points],
        "y": [point[metric.key] for _, point in points],
        "error_y": {"type": "data", "array": [point["error"] for _, point in points], "color": colour},
        "text": [str(point["number"] or "") for _, point in points],
        "textposition": "bottom right",
        "hovertemplate": f"%{{text}} %{{y:{metric.number_format}}} at %{{x:.4~s}}<extra></extra>",
        "line": {"color": colour, "width": 1},
        "marker": {"color": colour, "size": 9, "symbol": symbol, "line": {"color": INK, "width": 1}},
    }
