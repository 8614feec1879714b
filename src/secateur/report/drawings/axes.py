"""Create axes that list names of groups or layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.report.rendering import plain

ITSELF = "(the network itself)"
"""Label of the whole network, whose path is empty."""

_LONGEST = 26


def down(names: Sequence[str]) -> dict[str, Any]:
    """Create a vertical axis with a line for each name, the first on top.

    The page sets the height of the figure: ``meta.line`` of its layout, in pixels, for each name.

    Args:
        names: unique.
    """
    return _listing(names)


def across(names: Sequence[str]) -> dict[str, Any]:
    """Create a horizontal axis with a column for each name; the page omits labels that do not fit.

    Args:
        names: unique.
    """
    return {**_listing(names), "tickangle": -45}


def brief(name: str) -> str:
    """Shorten a path to fit beside a figure: omit the middle of its parts, from the left; numbers stay.

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
