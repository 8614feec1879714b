"""The room that a plan has: which widths each group may take."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from secateur.budget.limits import Limit, amount_of, checked_limit
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, Group, Role
from secateur.graph.groups import IntArray

Bounds = Limit | Mapping[str, Limit] | None
"""One bound for every group, or bounds by group name or pattern."""


@dataclass(frozen=True)
class Rules:
    """What is asked of the widths: the arguments of ``make_plan`` of the same names.

    Attributes:
        round_to: what kept widths are multiples of, unless the group stays whole.
        min_channels: what every group keeps.
        floors: what must stay of groups.
        caps: what may stay of groups.
        ignore: groups and modules to leave alone.
        only: groups and modules to cut, if not all.
        unscored: names of groups to leave alone, since their channels could not be valued.

    Raises:
        UsageError: if ``round_to`` or ``min_channels`` is not an integer of at least 1.
    """

    round_to: int = 1
    min_channels: int = 1
    floors: Bounds = None
    caps: Bounds = None
    ignore: str | Iterable[str] = ()
    only: str | Iterable[str] = ()
    unscored: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("round_to", "min_channels"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} must be an integer of at least 1, not {value!r}")
        # A generator would be empty at the second look.
        for name in ("ignore", "only"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))

    def room(self, graph: ChannelGraph) -> Room:
        """The widths that these rules leave to the groups of a network.

        Raises:
            UsageError: if a name is unknown, a bound is neither a share nor an amount, or no width
                lies between the floor and the cap of a group.
        """
        widths = np.array([group.channels for group in graph.groups], dtype=np.int64)
        open_ = [group.prunable and group.name not in self.unscored for group in graph.groups]
        fixed = ~np.array(open_, dtype=np.bool_) | _named(graph, self.ignore, "ignore")
        if self.only:
            fixed |= ~_named(graph, self.only, "only")
        floors = np.maximum(bounds(graph, self.floors, "floors", lower=True), self.min_channels)
        caps = np.minimum(bounds(graph, self.caps, "caps"), widths)
        step = int(self.round_to)
        least = -(-floors // step) * step
        least = np.where(fixed | (least > widths), widths, least)
        most = np.where(fixed | (caps == widths), widths, caps // step * step)
        for index in np.flatnonzero(most < least)[:1]:
            name = graph.groups[index].name
            raise UsageError(
                f"group '{name}': from its floor {floors[index]} to its cap {caps[index]} "
                f"no width is a multiple of {step} or all its {widths[index]} channels"
            )
        return Room(widths, least, most, step)


@dataclass(frozen=True, eq=False)
class Room:
    """The widths that each group may take: multiples of ``step``, or all its channels.

    Attributes:
        widths: channels of each group as it is, shape (groups,).
        least: the smallest width of each group.
        most: the largest width of each group.
        step: what widths are multiples of, if they are not those of the groups as they are.
    """

    widths: IntArray
    least: IntArray
    most: IntArray
    step: int

    def units(self, group: int) -> IntArray:
        """How many channels go at once, from all channels of a group down to the least, in turn."""
        width, least = int(self.widths[group]), int(self.least[group])
        if least == width:
            return np.empty(0, dtype=np.int64)
        lower = np.arange((width - 1) // self.step * self.step, least - 1, -self.step, dtype=np.int64)
        return -np.diff(lower, prepend=width)

    def below(self, targets: IntArray) -> IntArray:
        """The largest width of each group that is at most its target; the least one if none is."""
        rounded = np.where(targets >= self.widths, self.widths, targets // self.step * self.step)
        return np.clip(rounded, self.least, self.most)


def bounds(graph: ChannelGraph, given: Bounds, what: str, *, lower: bool = False) -> IntArray:
    """The bound of each group in channels, shape (groups,); where several apply, the strictest.

    Args:
        graph: the graph of the network.
        given: one bound for all groups, or bounds by group name or pattern.
        what: the name of the argument, for messages.
        lower: whether these are lower bounds: shares are then rounded up, and 1 is no bound.
            Otherwise shares are rounded down to at least 1, and all channels are no bound.

    Returns:
        The bounds.

    Raises:
        UsageError: if a name is unknown, or a bound is neither a share nor an amount.
    """
    named: Mapping[str, Limit]
    named = {} if given is None else given if isinstance(given, Mapping) else {"*": given}
    strictest = max if lower else min
    result = [1 if lower else group.channels for group in graph.groups]
    for pattern, limit in named.items():
        limit = checked_limit(limit, f"{what}[{pattern!r}]" if given is named else what)
        matches = [n for n, group in enumerate(graph.groups) if _fits(group.name, pattern)]
        if not matches and graph.groups:
            raise UsageError(f"{what}: no group '{pattern}'{_hint(pattern, [g.name for g in graph.groups])}")
        for number in matches:
            amount = amount_of(limit, graph.groups[number].channels, up=lower)
            result[number] = strictest(result[number], max(1, amount))
    return np.array(result, dtype=np.int64)


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _named(
    graph: ChannelGraph, patterns: Iterable[str], what: str
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which groups are meant by names of groups and of the modules that write or carry them."""
    named = np.zeros(len(graph.groups), dtype=np.bool_)
    everything = {path for tensor in graph.tensors for path in _paths(tensor)}
    for pattern in patterns:
        if pattern in graph:
            named[[group.name == pattern for group in graph.groups]] = True
            continue
        found = [
            fnmatchcase(group.name, pattern)
            or any(fnmatchcase(path, pattern) for path in _output_paths(group))
            for group in graph.groups
        ]
        if not any(found) and not any(_fits(path, pattern) for path in everything):
            known = [*everything, *(group.name for group in graph.groups)]
            raise UsageError(f"{what}: no group or module '{pattern}'{_hint(pattern, known)}")
        named |= np.array(found, dtype=np.bool_)
    return named


def _output_paths(group: Group) -> set[str]:
    """The modules that write or carry a group's channels, and the modules that those lie in."""
    return {
        path for member in group.members if member.role is not Role.CONSUMER for path in _paths(member.tensor)
    }


def _paths(tensor: str) -> list[str]:
    """A tensor's name and the paths of all modules that it lies in."""
    parts = tensor.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.4)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""
