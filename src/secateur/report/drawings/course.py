"""Draw accuracy, or another metric, against cost during a run, and by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.course import Epoch
from secateur.report.records import Records
from secateur.report.rendering import AFTER, BEFORE, CYCLE, GONE, INK, MUTED, Drawing, drawing, plain
from secateur.training.metrics import metric_of_path


def metric_against_cost(records: Records) -> Drawing | None:
    """Draw every epoch at the cost of its network; for a search, every network that it tried.

    Args:
        records: of the run.

    Returns:
        The figure, or ``None`` if nothing was evaluated.
    """
    variants, metric = {}, records.metric
    for key, title in (("macs", "MACs per example"), ("params", "parameters")):
        path = _path(records.summary, key)
        traces = [*path, *([] if path else _epochs(records, key)), *_ends(records, key)]
        if traces:
            layout = {
                "xaxis": {"title": {"text": title}, "autorange": "reversed", "tickformat": "~s"},
                "yaxis": {"title": {"text": metric.title}, "tickformat": metric.tick_format},
            }
            variants[title] = {"data": traces, "layout": layout}
    label = f"{metric.title.capitalize()} against cost: the network moves to the right as it gets smaller"
    return Drawing("course", label, variants) if variants else None


def _epochs(records: Records, key: str) -> list[dict[str, Any]]:
    """Draw the epochs as a line from the whole network to the smaller one."""
    whole = _of(records.summary, "baseline", key)
    known = [epoch for epoch in records.course.epochs if epoch.metric is not None]
    costs = [getattr(epoch, key) or whole for epoch in known]
    if not known or None in costs:
        return []
    value = f"%{{y:{records.metric.number_format}}}"
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"on validation {records.metric.unit}, in the course of training",
            "x": costs,
            "y": [epoch.metric for epoch in known],
            "customdata": [_where(epoch) for epoch in known],
            "hovertemplate": f"%{{customdata}}<br>{value} at %{{x:.4~s}}<extra></extra>",
            "line": {"color": AFTER, "width": 1},
            "marker": {"color": AFTER, "size": 7},
        }
    ]


def _where(epoch: Epoch) -> str:
    when = f"epoch {epoch.epoch}" if epoch.epoch else "before training"
    return f"{plain(epoch.phase)}, {when}"


def _ends(records: Records, key: str) -> list[dict[str, Any]]:
    """Draw the metric before and after the run, on test data."""
    summary, metric = records.summary, records.metric
    ends = [
        (name, _of(summary, side, key), _of(summary, side, metric.key))
        for name, side in (("before", "baseline"), ("after", "pruned"))
    ]
    known = [end for end in ends if None not in end]
    if not known:
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"before and after, on test {metric.unit}",
            "x": [cost for _, cost, _ in known],
            "y": [value for _, _, value in known],
            "customdata": [name for name, _, _ in known],
            "hovertemplate": f"%{{customdata}}: %{{y:{metric.number_format}}} at %{{x:.4~s}}<extra></extra>",
            "marker": {"color": GONE, "size": 13, "symbol": "diamond", "line": {"color": INK, "width": 1}},
        }
    ]


def _path(summary: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Draw the networks that a search tried."""
    path = summary.get("path") or ()
    metric = metric_of_path(path)
    quality = f"validation_{metric.key}"
    points = [
        (point["cost"][key] if point["cost"] else _of(summary, "baseline", key), point)
        for point in path
        if point[quality] is not None
    ]
    traces = []
    for held, colour, name in ((True, AFTER, "accepted"), (False, GONE, "rejected")):
        chosen = [(cost, point) for cost, point in points if bool(point["held"]) == held]
        if chosen:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers+text",
                    "name": f"a network of the search, {name}",
                    "x": [cost for cost, _ in chosen],
                    "y": [point[quality] for _, point in chosen],
                    "text": [str(point["number"]) for _, point in chosen],
                    "textposition": "top center",
                    "hovertemplate": "try %{text}: %{y:.2%} at %{x:.4~s}<extra></extra>",
                    "marker": {"color": colour, "size": 11, "symbol": "circle" if held else "x"},
                }
            )
    if traces:
        ordered = sorted(((cost, point[quality]) for cost, point in points), reverse=True)
        line: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines",
            "showlegend": False,
            "hoverinfo": "skip",
            "x": [cost for cost, _ in ordered],
            "y": [value for _, value in ordered],
            "line": {"color": MUTED, "width": 1, "dash": "dot"},
        }
        traces.insert(0, line)
    return traces


def _of(summary: Mapping[str, Any], side: str, key: str) -> Any:
    return (summary.get(side) or {}).get(key)


def epoch_by_epoch(records: Records) -> Drawing | None:
    """Draw metric and loss over the epochs, with a line at each cut.

    Args:
        records: of the run.

    Returns:
        The figure, or ``None`` if there are fewer than two epochs.
    """
    course, metric = records.course, records.metric
    if len(course.epochs) < 2:
        return None
    traces = [
        _line(
            course.epochs,
            "metric",
            f"{metric.title} on validation {metric.unit}",
            AFTER,
            "y",
            f":{metric.number_format}",
        ),
        _line(course.epochs, "loss", "loss in training", CYCLE[1], "y2", ":.4g"),
    ]
    layout = {
        "xaxis": {"title": {"text": "evaluation"}, "tickformat": ",d", "rangemode": "tozero", "anchor": "y2"},
        "yaxis": {
            "title": {"text": metric.title},
            "tickformat": metric.tick_format,
            "domain": [0.55, 1],
        },
        "yaxis2": {"title": {"text": "loss"}, "domain": [0, 0.45], "rangemode": "tozero", "anchor": "x"},
        "shapes": [
            {
                "type": "line",
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "x0": at + 0.5,
                "x1": at + 0.5,
                "line": {"color": BEFORE, "width": 1, "dash": "dash"},
            }
            for at in sorted({cut.after_epoch for cut in course.cuts})
        ],
        "hovermode": "x unified",
        "meta": {"height": 460},
    }
    label = f"{metric.title.capitalize()} and loss over the epochs; dashed lines are cuts"
    return drawing("epochs", label, [trace for trace in traces if any(trace["y"])], layout)


def _line(epochs: Sequence[Epoch], key: str, name: str, colour: str, axis: str, form: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [epoch.number for epoch in epochs],
        "y": [getattr(epoch, key) for epoch in epochs],
        "yaxis": axis,
        "customdata": [_where(epoch) for epoch in epochs],
        "hovertemplate": f"%{{y{form}}} (%{{customdata}})<extra></extra>",
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 5},
    }
