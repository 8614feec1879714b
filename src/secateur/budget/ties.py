"""Tie groups of one kind in different layers, so that they get one width."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from secateur.budget.integer_programme import GroupOptions
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
    for members in _members(kinds_of(graph)):
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


def ties_of(graph: ChannelGraph, depth_units: int) -> IntArray:
    """Number what is chosen together: the kinds of the groups, then each depth unit alone; shape (units,)."""
    kinds = kinds_of(graph)
    return np.append(kinds, np.arange(depth_units) + kinds.max(initial=-1) + 1)


def summed(options: Sequence[GroupOptions], ties: IntArray) -> list[GroupOptions]:
    """Add up the damages of what is chosen together, at the widths that all of its parts may have.

    >>> one = GroupOptions(np.array([1, 2, 4]), np.array([0.75, 0.25, 0.0]))
    >>> other = GroupOptions(np.array([2, 3, 4]), np.array([0.5, 0.1, 0.0]))
    >>> found = summed([one, other], np.array([0, 0]))[0]
    >>> found.widths.tolist(), found.damages.tolist()
    ([2, 4], [0.75, 0.0])
    """
    result = []
    for members in _members(ties):
        widths = reduce(np.intersect1d, [options[member].widths for member in members])
        damages = sum(
            options[member].damages[np.searchsorted(options[member].widths, widths)] for member in members
        )
        result.append(GroupOptions(widths, np.asarray(damages, dtype=np.float64)))
    return result


def summed_scores(
    scores: Mapping[int, npt.NDArray[np.float64]], ties: IntArray
) -> dict[int, npt.NDArray[np.float64]]:
    """Add up the ascending scores of the groups of each kind: the next channel goes in all of them.

    Args:
        scores: of the channels of each group that may be cut, by index of the group.
        ties: the kind of each group.

    Returns:
        The scores by kind.
    """
    kinds = sorted({int(ties[group]) for group in scores})
    return {
        kind: np.sum([np.sort(scores[group]) for group in scores if ties[group] == kind], axis=0)
        for kind in kinds
    }


def vanishing(inside: npt.NDArray[np.bool_], ties: IntArray) -> npt.NDArray[np.bool_]:
    """Find what vanishes with a branch, of what is chosen together: what has all its parts inside.

    Args:
        inside: whether a unit (column) vanishes with a unit (row).
        ties: what is chosen together.
    """
    members = _members(ties)
    rows = np.stack([inside[part].any(axis=0) for part in members])
    return np.stack([rows[:, part].all(axis=1) for part in members], axis=1)


def _members(ties: IntArray) -> list[IntArray]:
    """List the units of each kind."""
    return [np.flatnonzero(ties == kind) for kind in range(ties.max(initial=-1) + 1)]


def _without_numbers(name: str) -> str:
    """Replace the numbers in a name; that of a group among those of one module goes.

    >>> _without_numbers("layers.3.experts#2"), _without_numbers("layers.12.experts")
    ('layers.#.experts', 'layers.#.experts')
    """
    return re.sub(r"\d+", "#", re.sub(r"#\d+$", "", name))
