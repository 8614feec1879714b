"""Name and format what networks are judged by: accuracy, perplexity, or a metric of the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.formats import factor, percent


@dataclass(frozen=True)
class MetricKind:
    """A kind of metric: its names, which values are better, and how they are written.

    Attributes:
        name: of its values, such as ``top-1``.
        key: of its values in summaries.
        title: the quantity in words, for headings and axes.
        unit: what examples are called.
        is_share: whether values are shares, which are written in percent.
        lower_is_better: whether a lower value is better.
    """

    name: str
    key: str
    title: str
    unit: str
    is_share: bool = False
    lower_is_better: bool = False

    @property
    def number_format(self) -> str:
        """Return how a value is written, for ``format``."""
        return ".2%" if self.is_share else ".5g"

    @property
    def tick_format(self) -> str:
        """Return how the values on an axis are written."""
        return ".2~%" if self.is_share else "~g"

    def show(self, value: float | None) -> str:
        """Format a value.

        >>> TOP_1.show(0.5), PERPLEXITY.show(34.1234), PERPLEXITY.show(None)
        ('50.00%', '34.12', '–')
        """
        if self.is_share or value is None:
            return percent(value)
        return f"{value:.6g}" if self.key == "metric" else f"{value:.2f}"

    def show_error(self, error: float) -> str:
        """Format a standard error; that of a share in percentage points.

        >>> TOP_1.show_error(0.0123), PERPLEXITY.show_error(0.0123)
        ('1.2', '0.012')
        """
        return f"{100 * error:.1f}" if self.is_share else f"{error:.2g}"

    def change(self, before: float, after: float) -> str:
        """Format a difference of shares in percentage points, and of other metrics as a factor.

        >>> TOP_1.change(0.5, 0.25), PERPLEXITY.change(20.0, 25.0)
        ('-25.00', '×1.250')
        """
        if self.is_share:
            return f"{100 * (after - before):+.2f}"
        return f"×{after / before:.3f}" if before > 0 and self.lower_is_better else factor(before, after)


TOP_1 = MetricKind("top-1", "top1", "accuracy", "images", is_share=True)
MAP = MetricKind("mAP50-95", "map", "mean average precision", "images", is_share=True)
MAP_50 = MetricKind("mAP50", "map50", "mean average precision at an overlap of 0.5", "images", is_share=True)
PERPLEXITY = MetricKind("perplexity", "perplexity", "perplexity", "tokens", lower_is_better=True)
OWN = MetricKind("metric", "metric", "metric", "examples")
"""A metric of the user's, which is higher for better networks."""

_KINDS = (TOP_1, MAP, MAP_50, PERPLEXITY, OWN)


def kind_named(name: str) -> MetricKind:
    """Return the kind of metric of a name; that of the user's metrics for an unknown one."""
    return next((kind for kind in _KINDS if kind.name == name), OWN)


def kind_of(key: str) -> MetricKind | None:
    """Return the kind of metric that is stored under a key of a summary; ``None`` for another figure."""
    return next((kind for kind in _KINDS if kind.key == key), None)


def kinds_in(*figures: Mapping[str, Any] | None) -> list[MetricKind]:
    """List the kinds of metrics that some figures of a summary hold, the first one first."""
    held = {key for found in figures for key, value in (found or {}).items() if value is not None}
    return [kind for kind in _KINDS if kind.key in held]


def metric_of_path(path: Sequence[Mapping[str, Any]]) -> MetricKind:
    """Return what the networks of a search were judged by.

    Args:
        path: as in ``summary.json``: each point holds ``validation_`` with the key of the metric.

    >>> metric_of_path([{"number": 0, "validation_map": 0.5}]).name
    'mAP50-95'
    """
    held = {key.removeprefix("validation_") for point in path for key in point}
    return next((kind for kind in _KINDS if kind.key in held), TOP_1)


def kind_in(*figures: Mapping[str, Any] | None) -> MetricKind:
    """Return the kind of metric that networks are compared by in a summary; accuracy if it holds none.

    >>> kind_in({"params": 3}, {"perplexity": 34.1}).title, kind_in({}).title
    ('perplexity', 'accuracy')
    """
    return next(iter(kinds_in(*figures)), TOP_1)
