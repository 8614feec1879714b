"""Draw the scores of the channels of each group, and which of them were removed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.budget import WidthCurves
from secateur.criteria import Scores
from secateur.report.drawings.axes import down
from secateur.report.rendering import AFTER, CYCLE, GONE, Drawing, drawing, plain

Values = npt.NDArray[np.float64]

_MOST_POINTS, _MOST_DECADES = 3000, 5


def score_distributions(
    scores: Scores, removed_by: Mapping[str, Sequence[int]], normalize: str
) -> Drawing | None:
    """Draw boxes of the scores of each group, of channels that stay and channels that were removed.

    Args:
        scores: raw.
        removed_by: for each group that lost channels, the cut that removed each channel, 0 if it stays.
        normalize: how scores were made comparable between groups.
    """
    if not len(scores):
        return None
    kinds = {f"as ranked ({normalize}-normalised)": scores.normalized(normalize), "raw": scores}
    if normalize == "none":
        kinds.pop(next(iter(kinds)))
    variants = {}
    for kind, found in kinds.items():
        values = {name: np.asarray(found[name].tolist()) for name in found}
        for scale in ("linear", "log"):
            if scale == "linear" or all((group > 0).any() for group in values.values()):
                variants[f"{kind}, {scale} scale"] = _variant(values, removed_by, scores.criterion, scale)
    label = "The scores of the channels of each group before the first cut, by whether they stay"
    return Drawing("scores", label, variants)


def _variant(
    values: Mapping[str, Values], removed_by: Mapping[str, Sequence[int]], criterion: str, scale: str
) -> dict[str, Any]:
    share = min(1.0, _MOST_POINTS / max(1, sum(map(len, values.values()))))
    traces = []
    for goes, name, colour in ((False, "stays", AFTER), (True, "is removed in this run", GONE)):
        x: list[float] = []
        y: list[str] = []
        for group, found in values.items():
            numbers = np.asarray(removed_by.get(group) or np.zeros(len(found)))
            chosen = (
                found[(numbers > 0) == goes] if len(numbers) == len(found) else found[: 0 if goes else None]
            )
            chosen = _sample(chosen[chosen > 0] if scale == "log" else chosen, share)
            x += [float(f"{value:.4g}") for value in chosen]
            y += [group] * len(chosen)
        traces.append(_boxes(name, x, y, colour))
    layout = {
        "boxmode": "group",
        "boxgap": 0.25,
        "xaxis": {
            "title": {"text": f"{plain(criterion)} score"},
            "type": scale,
            "exponentformat": "power",
            **({"range": _decades(values)} if scale == "log" else {}),
        },
        "yaxis": down(list(values)),
        "meta": {"line": 44},
    }
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}


def _decades(values: Mapping[str, Values]) -> list[float]:
    """Choose the range of a logarithmic axis; channels with almost zero scores are outside."""
    positive = np.concatenate([group[group > 0] for group in values.values()])
    most = math.log10(positive.max())
    return [max(math.log10(positive.min()), most - _MOST_DECADES) - 0.1, most + 0.1]


def _boxes(name: str, x: list[float], y: list[str], colour: str) -> dict[str, Any]:
    return {
        "type": "box",
        "orientation": "h",
        "name": name,
        "x": x,
        "y": y,
        "boxpoints": "all",
        "jitter": 0.7,
        "pointpos": 0,
        "hoveron": "points+boxes",
        "line": {"color": colour, "width": 1},
        "marker": {"color": colour, "size": 3, "opacity": 0.65},
        "fillcolor": "rgba(0,0,0,0)",
        "meta": {"names": "y"},
    }


def _sample(values: Values, share: float) -> Values:
    """Reduce values to quantiles, by a share of their number; keep all values if the share is 1."""
    count = max(min(len(values), 5), int(len(values) * share))
    if count >= len(values):
        return values
    return np.quantile(values, np.linspace(0, 1, count))


def width_curves(curves: WidthCurves) -> Drawing | None:
    """Draw the measured damage of each width of each group.

    Args:
        curves: of all groups that were measured.
    """
    if not len(curves):
        return None
    traces = []
    for number, (name, curve) in enumerate(curves.items()):
        whole = curve.widths[-1]
        colour = CYCLE[number % len(CYCLE)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(name, 26),
                "x": [width / whole for width in curve.widths],
                "y": [float(f"{damage:.4g}") for damage in curve.damages],
                "customdata": [
                    f"<b>{plain(name)}</b><br>{width:,} of {whole:,} channels" for width in curve.widths
                ],
                "hovertemplate": "%{customdata}: %{y:.3g}<extra></extra>",
                "line": {"color": colour, "width": 1.5, "dash": _DASHES[number // len(CYCLE) % len(_DASHES)]},
                "marker": {"color": colour, "size": 4},
                "showlegend": len(curves) <= len(CYCLE) * 2,
                "meta": {"names": [name] * len(curve.widths)},
            }
        )
    unit = "Kullback-Leibler divergence" if curves.divergence == "kl" else "mean squared difference"
    layout = {
        "xaxis": {"title": {"text": "share of the channels left"}, "tickformat": ".0%"},
        "yaxis": {"title": {"text": f"damage: {unit}"}, "rangemode": "tozero"},
        "meta": {"height": 460},
    }
    return drawing("curves", "Divergence of the outputs when one group alone is narrowed", traces, layout)


_DASHES = ("solid", "dash", "dot", "dashdot")
