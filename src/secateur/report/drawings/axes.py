"""Axes that list names: of groups, or of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.report.shell import plain

ITSELF = "(the network itself)"
"""What the path of the whole network, which is empty, is shown as."""

_MOST_NAMES = 45


def down(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis with a line for each name, the first on top.

    The page makes the figure as high as ``meta.line`` of its layout, in pixels, says for each.

    Args:
        names: unique.
    """
    return {**_listing(names), "autorange": "reversed"}


def across(names: Sequence[str], title: str = "") -> dict[str, Any]:
    """A horizontal axis with a column for each name, without their words where they are too many.

    Args:
        names: unique.
        title: what they are.
    """
    axis = {**_listing(names), "tickangle": -45, "title": {"text": title}}
    return axis if len(names) <= _MOST_NAMES else {**axis, "showticklabels": False}


def _listing(names: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(names),
        "tickmode": "array",
        "tickvals": list(names),
        "ticktext": [plain(name, 26) for name in names],
    }
