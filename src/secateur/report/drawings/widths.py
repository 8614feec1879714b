"""Draw the widths of all channel groups, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.jobs.network_summary import GroupSummary
from secateur.report.drawings.axes import across
from secateur.report.rendering import AFTER, BEFORE, MUTED, Drawing, drawing, plain


def widths(groups: Sequence[GroupSummary]) -> Drawing:
    """Draw a bar for each group, in forward order, the width after inside the width before.

    Args:
        groups: all groups.
    """
    free = [group for group in groups if group.frozen is None]
    frozen = [group for group in groups if group.frozen is not None]
    traces = [
        _bars(free, "before", [group.before for group in free], BEFORE),
        _bars(free, "after", [group.after for group in free], AFTER),
    ]
    if frozen:
        traces.append(_bars(frozen, "frozen", [group.before for group in frozen], MUTED))
        traces[-1]["marker"]["pattern"] = {"shape": "/", "fgcolor": BEFORE, "size": 6}
    layout = {
        "barmode": "overlay",
        "bargap": 0.12,
        "xaxis": across([group.name for group in groups]),
        "yaxis": {"title": {"text": "channels"}, "showticklabels": False, "zeroline": True},
        "meta": {"height": 440},
    }
    label = "The width of every channel group before and after, in forward order"
    return drawing("widths", label, traces, layout)


def _bars(groups: Sequence[GroupSummary], name: str, channels: Sequence[int], colour: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": [group.name for group in groups],
        "y": list(channels),
        "base": [-width / 2 for width in channels],
        "customdata": [_words(group) for group in groups],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"color": colour},
        "meta": {"names": "x"},
    }


def _words(group: GroupSummary) -> str:
    if group.frozen is not None:
        return (
            f"<b>{plain(group.name)}</b><br>{group.before:,} channels, frozen:<br>{plain(group.frozen, 90)}"
        )
    share = group.after / group.before if group.before else 1.0
    return f"<b>{plain(group.name)}</b><br>{group.before:,} to {group.after:,} channels ({share:.0%} left)"
