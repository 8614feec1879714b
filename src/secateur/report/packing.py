"""Lists of words as they lie in a page: each word once in the page, and numbers where it stands.

A large network has thousands of points to draw, each under the name of a layer and of a group. The script of
the page takes the lists apart again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LEAST = 16
"""Below so many words, a list is left as it is."""


def packed(tree: Any) -> dict[str, Any]:
    """Plain values in which every long list of words is one of numbers.

    Args:
        tree: as JSON has it.

    Returns:
        ``words``, and the ``tree`` with ``{"at": numbers of words}`` for each long list of them.

    >>> packed({"x": ["conv", "head"] * 8, "y": ["conv"], "z": [1, 2]})
    {'words': ['conv', 'head'], 'tree': {'x': {'at': [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]}, \
'y': ['conv'], 'z': [1, 2]}}
    """
    place: dict[str | None, int] = {}
    found = _packed(tree, place)
    return {"words": list(place), "tree": found}


def _packed(value: Any, place: dict[str | None, int]) -> Any:
    if isinstance(value, Mapping):
        return {name: _packed(one, place) for name, one in value.items()}
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    if len(value) >= _LEAST and all(one is None or isinstance(one, str) for one in value):
        return {"at": [place.setdefault(word, len(place)) for word in value]}
    return [_packed(one, place) for one in value]
