"""Take apart what a network returns: tensors and plain values, by their paths."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from secateur._compat import SUPPORTED_NODES

_PLAIN = (Tensor, str, bytes, bool, int, float, complex, type(None))


@dataclass(frozen=True)
class Parts:
    """What an output consists of.

    Attributes:
        leaves: tensors and plain values.
        paths: where each leaf is in the output, such as ``"['scores'][0]"`` or ``".scores"``.
        left_out: for each object of another kind, where it is, and its class. What it holds is not known,
            such as the keys and values that a decoder caches.
    """

    leaves: tuple[Any, ...]
    paths: tuple[str, ...]
    left_out: Mapping[str, str]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """List the tensors among the leaves."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Tensor))


def parts_of(output: Any) -> Parts:
    """Take apart what a network returned.

    Tuples, named tuples, lists, mappings of all kinds, data classes and the classes that are registered in
    PyTorch's pytree are taken apart. Nothing is registered for it.

    Args:
        output: anything.

    Returns:
        Its parts, in the order in which the containers list them.

    Example:
        >>> import torch
        >>> parts = parts_of({"loss": 0.5, "scores": (torch.zeros(2), None), "cache": object()})
        >>> parts.paths, dict(parts.left_out)
        (("['loss']", "['scores'][0]", "['scores'][1]"), {"['cache']": 'object'})
    """
    found = list(_parts(output, ""))
    known = [(path, leaf) for path, leaf in found if _is_plain(leaf)]
    return Parts(
        tuple(leaf for _, leaf in known),
        tuple(path for path, _ in known),
        {path: type(leaf).__name__ for path, leaf in found if not _is_plain(leaf)},
    )


def with_leaves(output: Any, leaves: Iterable[Any]) -> Any:
    """Make a copy of what a network returned, with other leaves.

    Args:
        output: anything that :func:`parts_of` takes apart.
        leaves: the new tensors and plain values, in the order of its parts.

    Returns:
        An object of the same class. What is left out of the parts is that of the given one.

    Example:
        >>> with_leaves({"loss": 0.5, "scores": (1, 2)}, [0.1, 3, 4])
        {'loss': 0.1, 'scores': (3, 4)}
    """
    return _rebuilt(output, iter(leaves))


def _rebuilt(value: Any, leaves: Iterator[Any]) -> Any:
    if _is_plain(value):
        return next(leaves)
    children = _children(value)
    if children is None:
        return value
    items = [_rebuilt(child, leaves) for _, child in children]
    if isinstance(value, Mapping):
        made: Any = copy.copy(value)
        for key, item in zip(dict.keys(value) if isinstance(value, dict) else value, items, strict=True):
            made[key] = item
        return made
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)._make(items)  # type: ignore[attr-defined]  # a named tuple
    if isinstance(value, tuple | list | deque):
        return type(value)(items)
    registered = SUPPORTED_NODES.get(type(value))
    if registered is not None:
        return registered.unflatten_fn(items, registered.flatten_fn(value)[1])
    made = copy.copy(value)
    names = [item.name for item in fields(value) if hasattr(value, item.name)]
    for name, item in zip(names, items, strict=True):
        object.__setattr__(made, name, item)
    return made


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = None if _is_plain(value) else _children(value)
    if children is None:
        yield path, value
        return
    for key, child in children:
        yield from _parts(child, path + key)


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) and not isinstance(value, Enum)


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """List what a container holds, with the path of each; ``None`` for an object of another kind."""
    if isinstance(value, Mapping):
        # Output classes of libraries derive from dict and give other items by number.
        items = dict.items(value) if isinstance(value, dict) else value.items()
        return [(f"[{key!r}]", item) for key, item in items]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", item) for name, item in zip(value._fields, value, strict=True)]
    if isinstance(value, tuple | list | deque):
        return [(f"[{place}]", item) for place, item in enumerate(value)]
    registered = SUPPORTED_NODES.get(type(value))
    if registered is not None:  # perhaps without names for its parts
        return [(f"[{place}]", item) for place, item in enumerate(registered.flatten_fn(value)[0])]
    if is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in fields(value) if hasattr(value, item.name)]
        return [(f".{name}", getattr(value, name)) for name in names]
    return None
