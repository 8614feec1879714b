"""Follow values that are indices of channels, such as those of the experts that a router chose.

A cut renumbers what stays, in order. So such indices may be moved, sorted, and used to pick from a dimension
that holds these channels; anything else that is done with them freezes the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import Node

from secateur.graph.capture.nodes import named_arguments, operator_name
from secateur.graph.capture.operators import COPIES, LIKE
from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value

# fmt: off
_MOVE = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "mT", "movedim",
    "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "repeat_interleave", "slice", "narrow", "select",
    "split", "chunk", "unbind", *COPIES, "detach", "detach_", "alias", "cat", "concat", "concatenate",
    "stack", "sort", "lift_fresh_copy", "index", "gather",
}
# fmt: on
"""Operators that move numbers and keep each as it is."""

_FIRST_ONLY = {"sort"}
"""Operators of which only the first result holds the numbers that went in."""

_PICK = {
    "index": "indices",
    "index_select": "index",
    "gather": "index",
    "scatter": "index",
    "scatter_add": "index",
    "index_add": "index",
    "embedding": "indices",
    "one_hot": "self",
    "histc": "self",
}
"""Operators whose rules follow indices of channels, and the argument that holds them."""

_COMPARE = {"eq", "ne", "gt", "ge", "lt", "le"}
"""Operators that compare numbers; two indices of the same channels compare alike after a cut."""

_IGNORE = LIKE | {"argsort", "sym_size", "_assert_tensor_metadata"}
"""Operators that read the order of numbers, which a cut does not change, or their shape alone."""


def with_channel_indices(node: Node, env: Mapping[Node, Any], found: Any) -> tuple[Any, list[IntArray]]:
    """Note that an operator moves indices of channels, or uses them as other numbers.

    Args:
        node: the operator.
        env: the values of the nodes before it.
        found: the value of its result, or one for each of several, as its rule gave it.

    Returns:
        The value with ``indices_of``, and the channels whose indices the operator uses as mere numbers.
    """
    held = {source: own for source in node.all_input_nodes if (own := _indices_of(env, source)) is not None}
    if not held:
        return found, []
    name = operator_name(node).removesuffix("_")
    first = node.args[0]
    moved = _common([_indices_of(env, item) for item in (first if isinstance(first, Sequence) else [first])])
    if name in _MOVE and moved is not None:
        others = [own for own in held.values() if not np.array_equal(own, moved)]
        if isinstance(found, Sequence):
            return [
                replace(item, indices_of=moved) if number == 0 or name not in _FIRST_ONLY else item
                for number, item in enumerate(found)
            ], others
        return replace(found, indices_of=moved), others
    same = len({tuple(own.tolist()) for own in held.values()}) == 1
    if name in _COMPARE and same and set(node.args) <= set(held):
        return found, []
    if name in _IGNORE or (name in _PICK and not _takes_elsewhere(node, _PICK[name], held)):
        return found, []
    return found, list(held.values())


def _indices_of(env: Mapping[Node, Any], item: Any) -> Labels:
    value = env.get(item) if isinstance(item, Node) else None
    return value.indices_of if isinstance(value, Value) else None


def _common(found: Sequence[Labels]) -> Labels:
    """Return the channels whose indices all of some values are; ``None`` if they are of different ones."""
    first = found[0] if found else None
    same = all(item is not None and first is not None and np.array_equal(item, first) for item in found)
    return first if same else None


def _takes_elsewhere(node: Node, argument: str, held: Mapping[Node, IntArray]) -> bool:
    """Return whether an operator takes indices in another argument than the one that its rule follows."""
    given = named_arguments(node)
    item = given.pop(argument, None)
    inside = set(item) if isinstance(item, Sequence) else {item}
    others = {leaf for rest in given.values() for leaf in (rest if isinstance(rest, Sequence) else [rest])}
    return any(source in others or source not in inside for source in held)
