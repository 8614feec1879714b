"""Convert plain values of attributes to JSON and back.

Numbers, truth values, text, ``None`` and lists are written as they are; everything else is an object with one
entry that names its kind: ``{"tuple": [8, 8]}``, ``{"dtype": "float32"}``. Reading creates only these
kinds, so data types and devices are the only things that are looked up by a name in the file.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_LARGEST = 2**63
_LONGEST = 1 << 16  # characters of one text
_DEEPEST = 8
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_ODD_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class _NotPlainError(ValueError):
    """A value that cannot be written to a file."""


def is_plain(value: object) -> bool:
    """Return whether a value can be written.

    >>> is_plain((8, None, [1.5, "same"])), is_plain({"a": 1}), is_plain(torch.zeros(1))
    (True, False, False)
    """
    try:
        encoded(value)
    except _NotPlainError:
        return False
    return True


def encoded(value: object, depth: int = 0) -> Any:
    """Convert a plain value to JSON.

    >>> encoded((8, torch.float16)), encoded([1, 2]), encoded(torch.Size([3]))
    ({'tuple': [8, {'dtype': 'float16'}]}, [1, 2], {'size': [3]})

    Raises:
        ValueError: the value is of another kind.
    """
    kind = type(value)
    if kind in (list, tuple, torch.Size) and depth < _DEEPEST:
        items = [encoded(item, depth + 1) for item in value]  # type: ignore[attr-defined]
        return items if kind is list else {"tuple" if kind is tuple else "size": items}
    if value is None or kind is bool:
        return value
    if isinstance(value, int) and kind is int and abs(value) < _LARGEST:
        return value
    if isinstance(value, float) and kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, str) and kind is str and len(value) <= _LONGEST:
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise _NotPlainError(f"{kind.__name__} is not a plain value")


def decoded(data: Any, depth: int = 0) -> Any:  # noqa: C901  # one case for each kind
    """Read what :func:`encoded` wrote, from data of any origin.

    >>> decoded({"tuple": [8, {"dtype": "float16"}]})
    (8, torch.float16)

    Raises:
        ValueError: the data are of another form.
    """
    match data:
        case None | bool():
            return data
        case int() if abs(data) < _LARGEST:
            return data
        case float() if math.isfinite(data):
            return data
        case str() if len(data) <= _LONGEST:
            return data
        case list() if depth < _DEEPEST:
            return [decoded(item, depth + 1) for item in data]
        case {"float": str(text), **rest} if not rest and text in _ODD_FLOATS:
            return _ODD_FLOATS[text]
        case {"dtype": str(text), **rest} if not rest and text in _DTYPES:
            return _DTYPES[text]
        case {"device": str(text), **rest} if not rest:
            try:
                return torch.device(text)
            except RuntimeError as error:
                raise _NotPlainError(f"{text[:40]!r} is not a device") from error
        case {"sequence": list(items), **rest} if not rest and all(type(item) is int for item in items):
            return items  # a list, a tuple or a size: format 1 does not distinguish them
        case {"tuple": list(items), **rest} if not rest and depth < _DEEPEST:
            return tuple(decoded(item, depth + 1) for item in items)
        case {"size": list(items), **rest} if not rest and all(type(item) is int for item in items):
            return torch.Size(items)
    raise _NotPlainError("a value of an unknown form")
