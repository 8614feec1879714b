"""Tie groups of one kind in different layers, so that they get one width."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from secateur.errors import UsageError

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph
    from secateur.graph.groups import IntArray


def kinds_of(graph: ChannelGraph) -> IntArray:
    """Number the kinds of the groups: groups of one kind differ in the numbers in their names only.

    They have equally many channels, in tensors whose names differ in numbers only, such as
    ``layers.3.mlp.up.weight``: the same part of every layer, and the experts of a mixture.

    Args:
        graph: the graph of the network.

    Returns:
        The kind of each group, shape (groups,).
    """
    keys = [
        (
            _without_numbers(group.name),
            group.channels,
            tuple(sorted({(_without_numbers(member.tensor), member.dim) for member in group.members})),
        )
        for group in graph.groups
    ]
    known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([known[key] for key in keys], dtype=np.int64)


def common_widths(
    graph: ChannelGraph, options: Sequence[IntArray], most: IntArray
) -> tuple[list[IntArray], IntArray]:
    """Leave to every group only those widths that all groups of its kind may have.

    Args:
        graph: the graph of the network.
        options: the widths that each group may have alone, ascending; the last is the whole group.
        most: the largest of them that its cap allows, shape (groups,).

    Returns:
        Both for the widths in common.

    Raises:
        UsageError: groups of one kind have no width in common.
    """
    found, largest = list(options), most.copy()
    kinds = kinds_of(graph)
    for kind in range(kinds.max(initial=-1) + 1):
        members = np.flatnonzero(kinds == kind).tolist()
        common = reduce(np.intersect1d, [options[member] for member in members])
        allowed = common[common <= most[members].min()]
        if not len(allowed):
            names = " and ".join(f"'{graph.groups[member].name}'" for member in members[:2])
            raise UsageError(
                f"uniform_widths: groups of one kind, such as {names}, have no width in common; give "
                "them the same floors and caps, and ignore all of them or none"
            )
        largest[members] = allowed[-1]
        for member in members:
            found[member] = common
    return found, largest


def _without_numbers(name: str) -> str:
    """Replace the numbers in a name; that of a group among those of one module goes.

    >>> _without_numbers("layers.3.experts#2"), _without_numbers("layers.12.experts")
    ('layers.#.experts', 'layers.#.experts')
    """
    return re.sub(r"\d+", "#", re.sub(r"#\d+$", "", name))
