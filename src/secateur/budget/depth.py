"""Find the residual branches that a plan may remove, as units next to the channel groups."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from secateur.errors import UsageError

if TYPE_CHECKING:
    from secateur.budget.widths import Widths
    from secateur.graph import ChannelGraph
    from secateur.graph.branches import ResidualBranch
    from secateur.graph.groups import BoolArray, IntArray


@dataclass(frozen=True, eq=False)
class Depth:
    """The residual branches that a plan may remove.

    A depth unit is one branch, or all branches of a block that are removed together. Its width is 1 or 0.
    Arrays over units have the channel groups first, then the depth units.

    Attributes:
        units: for each depth unit, the names of its branches.
        members: whether a branch of the wiring is in a depth unit, shape (branches, depth units).
        present_now: 1 for each branch of the wiring that the network still has, 0 for the others; shape
            (branches,).
        inside: whether a unit exists only inside the branches of a depth unit, and vanishes with it; shape
            (depth units, units).
    """

    units: tuple[tuple[str, ...], ...]
    members: IntArray = field(repr=False)
    present_now: IntArray = field(repr=False)
    inside: BoolArray = field(repr=False)

    @classmethod
    def of(cls, graph: ChannelGraph, units: Sequence[tuple[str, ...]]) -> Depth:
        """Find what vanishes with each depth unit.

        Args:
            graph: the graph of the network.
            units: for each depth unit, the names of its branches; none if no branch is removed.
        """
        branches = graph.wiring.branches
        number = {branch.name: place for place, branch in enumerate(branches)}
        members = np.zeros((len(branches), len(units)), dtype=np.int64)
        for unit, names in enumerate(units):
            members[[number[name] for name in names], unit] = 1
        parent_of = {branch.name: branch.parent for branch in branches}
        groups = len(graph.groups)
        inside = np.zeros((len(units), groups + len(units)), dtype=np.bool_)
        for unit, names in enumerate(units):
            tensors = {tensor for name in names for tensor in branches[number[name]].tensors}
            for place, group in enumerate(graph.groups):
                inside[unit, place] = {member.tensor for member in group.members} <= tensors
            for other, inner in enumerate(units):
                nested = all(set(_parents(name, parent_of)) & set(names) for name in inner)
                inside[unit, groups + other] = other != unit and nested
        return cls(tuple(units), members, graph.present, inside)

    def present(self, widths: IntArray) -> IntArray:
        """Return 1 for each branch of the wiring that is present and 0 for the others.

        Args:
            widths: of the units, shape (..., units).

        Returns:
            Shape (..., branches).
        """
        absent = (1 - _of_depth_units(widths, len(self.units))) @ self.members.T
        return np.asarray(self.present_now * (absent == 0), dtype=np.int64)

    def alive(self, widths: IntArray) -> BoolArray:
        """Return whether each unit is outside of all absent branches, or is one; widths (..., units)."""
        return ~vanished(self.inside, widths)


def _parents(name: str, parent_of: Mapping[str, str | None]) -> Iterator[str]:
    """Yield the branches that a branch is a part of, from the inside out."""
    parent = parent_of[name]
    while parent is not None:
        yield parent
        parent = parent_of[parent]


def vanished(inside: BoolArray, widths: IntArray) -> BoolArray:
    """Return whether each unit is inside an absent branch.

    Args:
        inside: which unit (column) vanishes with which depth unit (row), shape (depth units, units).
        widths: of the units, shape (..., units); depth units come last.

    >>> inside = np.array([[True, False]])
    >>> vanished(inside, np.array([[8, 0], [8, 1]])).tolist()
    [[True, False], [False, False]]
    """
    absent = _of_depth_units(widths, len(inside)) == 0
    return np.asarray(absent.astype(np.int64) @ inside.astype(np.int64) > 0, dtype=np.bool_)


def _of_depth_units(widths: IntArray, count: int) -> IntArray:
    """Return the widths of the depth units, shape (..., count), which come last."""
    return widths[..., widths.shape[-1] - count :]


def find_depth(graph: ChannelGraph, widths: Widths, unscored: Container[str] = ()) -> Depth:
    """Find the depth units that plans may remove.

    Args:
        graph: the graph of the network.
        widths: says whether branches may be removed, which of them stay, and which go together.
        unscored: names of branches that stay.

    Raises:
        UsageError: only branches may be removed, and there are none.
    """
    if widths.depth == "off":
        return Depth.of(graph, ())
    free = [
        branch.name
        for branch in graph.branches
        if branch.prunable and branch.name not in unscored and not _stays(graph, branch, widths)
    ]
    if widths.depth == "only" and not free:
        raise UsageError(
            "depth='only' removes residual branches, and this network has none that may be removed; "
            "print the graph to see the reasons, or take depth='off'"
        )
    units = _blocks(graph, free) if widths.uniform_depth else [(name,) for name in free]
    return Depth.of(graph, units)


def branch_names(graph: ChannelGraph) -> list[str]:
    """List the names of the residual branches that the network still has."""
    return [branch.name for branch in graph.branches]


def fits(name: str, pattern: str) -> bool:
    """Return whether a name is, or matches, a pattern."""
    return name == pattern or fnmatchcase(name, pattern)


def enclosing_paths(tensor: str) -> list[str]:
    """List a tensor's name and the paths of all modules that contain it."""
    parts = tensor.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _stays(graph: ChannelGraph, branch: ResidualBranch, widths: Widths) -> bool:
    """Return whether a branch is to stay by request."""
    within = _groups_within(graph, branch)
    paths = [set(enclosing_paths(name)) for name in (*branch.tensors, *branch.modules)]
    names = {branch.name, *within}.union(*paths)
    floors = widths.floors if isinstance(widths.floors, Mapping) else {}
    kept = (*widths.ignore, *(pattern for pattern in floors if pattern != "*"))
    if any(fits(name, pattern) for name in names for pattern in kept):
        return True
    if not widths.only:
        return False
    # Modules to cut must contain all that goes.
    return not all(
        any(fits(path, one) for path in (*found, branch.name) for one in widths.only) for found in paths
    )


def _groups_within(graph: ChannelGraph, branch: ResidualBranch) -> list[str]:
    """List the groups that only a branch has."""
    tensors = set(branch.tensors)
    return [group.name for group in graph.groups if {member.tensor for member in group.members} <= tensors]


def _blocks(graph: ChannelGraph, free: Sequence[str]) -> list[tuple[str, ...]]:
    """Gather the branches of each block; a block with a branch that stays is left out."""
    tensors_of: dict[str, list[str]] = {}
    for tensor in graph.tensors:
        for path in enclosing_paths(tensor)[:-1]:
            tensors_of.setdefault(path, []).append(tensor[len(path) :])
    kinds = {path: (*_kind(path), *tensors) for path, tensors in tensors_of.items()}
    count = Counter(kinds.values())
    blocks: dict[str, list[str]] = {}
    for branch in graph.branches:
        above = [path for path in enclosing_paths(branch.name) if path in kinds and count[kinds[path]] > 1]
        blocks.setdefault(above[-1] if above else branch.name, []).append(branch.name)
    return [tuple(names) for names in blocks.values() if set(names) <= set(free)]


def _kind(path: str) -> tuple[str, str]:
    """Return the module that contains a module, and its name there without digits."""
    parent, _, name = path.rpartition(".")
    return parent, re.sub(r"\d+", "#", name)
