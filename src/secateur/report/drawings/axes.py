"""Axes that list names: of groups, or of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.report.shell import plain

ITSELF = "(the network itself)"
"""What the path of the whole network, which is empty, is shown as."""

_LONGEST = 26


def down(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis with a line for each name, the first on top.

    The page makes the figure as high as ``meta.line`` of its layout, in pixels, says for each.

    Args:
        names: unique.
    """
    return _listing(names)


def across(names: Sequence[str], title: str = "") -> dict[str, Any]:
    """A horizontal axis with a column for each name; the page leaves their words out where there is no room.

    Args:
        names: unique.
        title: what they are.
    """
    return {**_listing(names), "tickangle": -45, "title": {"text": title}}


def brief(name: str) -> str:
    """A path that fits beside a figure: parts give up their middle, from the left, numbers stay.

    Args:
        name: of a module or a group.

    >>> brief("layer1.0.conv1"), brief("features.denseblock1.denselayer12.conv1")
    ('layer1.0.conv1', 'feat….dens…1.dens…12.conv1')
    """
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= _LONGEST:
            break
        digits = part[len(part.rstrip("0123456789")) :]
        shorter = f"{part[:4]}…{digits}"
        parts[at] = min(part, shorter, key=len)
    return plain(".".join(parts), _LONGEST)


def _listing(names: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(names),
        "tickmode": "array",
        "ticktext": [brief(name) for name in names],
    }
