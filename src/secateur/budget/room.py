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

Ladders = tuple[IntArray, ...]
"""For each group the widths that it may have, ascending; the last is the whole group."""


@dataclass(frozen=True)
class Rules:
    """What is asked of the widths: the arguments of ``make_plan`` of the same names.

    Attributes:
        round_to: what kept widths are multiples of, unless the group stays whole; or the widths that there
            are, group by group.
        min_channels: what every group keeps.
        floors: what must stay of groups.
        caps: what may stay of groups.
        ignore: groups and modules to leave alone.
        only: groups and modules to cut, if not all.
        unscored: names of groups to leave alone, since their channels could not be valued.

    Raises:
        UsageError: if ``round_to`` or ``min_channels`` is not an integer of at least 1.
    """

    round_to: int | Ladders = 1
    min_channels: int = 1
    floors: Bounds = None
    caps: Bounds = None
    ignore: str | Iterable[str] = ()
    only: str | Iterable[str] = ()
    unscored: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("round_to", "min_channels"):
            value = getattr(self, name)
            if name == "round_to" and isinstance(value, tuple):
                continue
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
        needed = np.array([group.min_channels for group in graph.groups], dtype=np.int64)
        floors = np.maximum(bounds(graph, self.floors, "floors", lower=True), self.min_channels)
        floors = np.maximum(floors, needed)
        caps = np.minimum(bounds(graph, self.caps, "caps"), widths)
        ladders = tuple(
            self._ladder(number, int(width), int(floor), bool(fix))
            for number, (width, floor, fix) in enumerate(zip(widths, floors, fixed, strict=True))
        )
        least = np.array([ladder[0] for ladder in ladders], dtype=np.int64)
        most = np.array(
            [
                ladder[-1] if fix else max(ladder[ladder <= cap], default=0)
                for ladder, cap, fix in zip(ladders, caps, fixed, strict=True)
            ],
            dtype=np.int64,
        )
        for index in np.flatnonzero(most < least)[:1]:
            name = graph.groups[index].name
            raise UsageError(
                f"group '{name}': from its floor {floors[index]} to its cap {caps[index]} "
                f"no width is {self._kind()} or all its {widths[index]} channels"
            )
        return Room(widths, least, most, ladders)

    def _ladder(self, group: int, width: int, floor: int, fixed: bool) -> IntArray:
        """The widths of one group from its floor up, the whole group last."""
        if fixed:
            return np.array([width], dtype=np.int64)
        if isinstance(self.round_to, tuple):
            known = self.round_to[group]
            below = known[(known >= floor) & (known < width)]
        else:
            step = int(self.round_to)
            below = np.arange(-(-floor // step) * step, width, step, dtype=np.int64)
        return np.append(below, width)

    def _kind(self) -> str:
        return "one that runs well" if isinstance(self.round_to, tuple) else f"a multiple of {self.round_to}"


@dataclass(frozen=True, eq=False)
class Room:
    """The widths that each group may take.

    Attributes:
        widths: channels of each group as it is, shape (groups,).
        least: the smallest width of each group.
        most: the largest width of each group.
        ladders: for each group the widths from the least to all its channels, ascending.
    """

    widths: IntArray
    least: IntArray
    most: IntArray
    ladders: Ladders

    def units(self, group: int) -> IntArray:
        """How many channels go at once, from all channels of a group down to the least, in turn."""
        return np.diff(self.ladders[group])[::-1]

    def allowed(self, group: int) -> IntArray:
        """The widths of a group between its bounds, ascending."""
        ladder = self.ladders[group]
        return np.asarray(ladder[ladder <= self.most[group]], dtype=np.int64)

    def below(self, targets: IntArray) -> IntArray:
        """The largest width of each group that is at most its target; the least one if none is."""
        return np.array(
            [
                max(ladder[ladder <= target], default=ladder[0])
                for ladder, target in zip(self.ladders, targets, strict=True)
            ],
            dtype=np.int64,
        )


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
