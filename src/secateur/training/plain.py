"""Plain values: what JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def plain(value: object) -> object:
    """A value with numbers that JSON cannot hold replaced by ``None``, and paths by text.

    Args:
        value: in any nest of mappings, lists and tuples.

    >>> plain({"loss": float("nan"), "out": Path("runs"), "sizes": (1, 2)})
    {'loss': None, 'out': 'runs', 'sizes': [1, 2]}
    """
    match value:
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case float() if value != value or value in (float("inf"), float("-inf")):
            return None
        case Path():
            return str(value)
    return value
