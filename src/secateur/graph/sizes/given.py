"""List the sizes among the arguments of operators, as a network's code calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.graph.capture.operators import CONVOLUTIONS, FILLED, GROUPS, REPEATED, TRANSPOSED

_SHAPED = {**dict.fromkeys((*REPEATED, "view", "reshape", "as_strided"), 1), **FILLED, "rand": 0, "randn": 0}
"""Where the sizes begin among the arguments of operators that take one for each dimension."""

_NUMBER = {
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED), (GROUPS, "groups")),
    "layer_norm": (1, "normalized_shape"),
    "group_norm": (1, "num_groups"),
    "pad": (1, "pad"),
    "repeat_interleave": (1, "repeats"),
    "one_hot": (1, "num_classes"),
    "histc": (1, "bins"),
}
"""Place and name of the one argument that is a size, or a list of sizes."""


def given_sizes(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """List the sizes that a call was given.

    Args:
        name: of the operator.
        args: its arguments.
        kwargs: its named arguments.

    Returns:
        One integer per dimension of the result, per piece, per border of a range, or the one number of
        groups or repeats; ``None`` for what is no integer. Empty for other operators.

    Example:
        >>> given_sizes("view", (None, 2, -1), {}), given_sizes("expand", (None, (4, 3)), {})
        ((2, -1), (4, 3))
    """
    if name in _SHAPED:
        given = args[_SHAPED[name] :] or tuple(
            kwargs.get(key, ()) for key in ("shape", "size", "repeats") if key in kwargs
        )
    elif name in ("mul", "div"):
        return args[1:2] if len(args) > 1 and isinstance(args[1], int | float) else ()
    elif name == "slice":
        return _borders(args[1])
    elif name == "narrow":
        start, length = args[2:4] if len(args) > 3 else (kwargs.get("start", 0), kwargs.get("length", 0))
        return (start, start + length) if isinstance(start, int) else ()
    elif name == "split":
        given = args[1:2] or (kwargs.get("split_size_or_sections", ()),)
    elif name == "unflatten":
        return _unflattened(args[0].dim(), *args[1:], **kwargs)
    elif name in _NUMBER:
        place, key = _NUMBER[name]
        given = (args[place] if len(args) > place else kwargs.get(key),)
    else:
        return ()
    listed = given[0] if given and isinstance(given[0], Sequence) else given
    return tuple(item if isinstance(item, int) else None for item in listed)


def _unflattened(dims: int, dim: int, sizes: Sequence[Any]) -> tuple[Any, ...]:
    """List the sizes of a dimension that is split, after nothing for the dimensions before it."""
    return (*(None,) * (int(dim) % dims), *(item if isinstance(item, int) else None for item in sizes))


def _borders(item: Any) -> tuple[Any, ...]:
    """List where a range begins and ends."""
    named = isinstance(item, slice) and (item.start is not None or item.stop is not None)
    return (item.start, item.stop) if named else ()


Step = tuple[int, int | slice | None]
"""A dimension, and the number, range or new dimension that an index has there."""


def index_steps(index: Any, dims: int) -> list[Step] | None:
    """Take an index apart into the operators that it runs one after the other.

    Args:
        index: between the brackets.
        dims: how many dimensions the indexed tensor has.

    Returns:
        For each number, range and new dimension, the dimension of the result so far that it is for. Nothing
        if the index holds anything else, such as a tensor.

    Example:
        >>> index_steps((slice(None), 0, slice(2)), 3), index_steps((..., slice(2), None), 3)
        ([(1, 0), (1, slice(None, 2, None))], [(2, slice(None, 2, None)), (3, None)])
    """
    items = index if isinstance(index, tuple) else (index,)
    allowed = (int, slice, type(None), type(...))
    if not all(isinstance(item, allowed) and not isinstance(item, bool) for item in items):
        return None
    named = sum(isinstance(item, int | slice) for item in items)
    place = items.index(...) if ... in items else len(items)
    steps: list[Step] = []
    dim = 0
    for item in (*items[:place], *[slice(None)] * (dims - named), *items[place + 1 :]):
        if item != slice(None):
            steps.append((dim, item))
        dim += not isinstance(item, int)
    return steps
