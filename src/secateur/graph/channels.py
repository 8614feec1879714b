"""Find the channels of a network from equalities between slots, and sort them into groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from secateur.graph.groups import Group, IntArray, Member, Role, distinct_name
from secateur.graph.labels import SlotTable, role_of


@dataclass(frozen=True)
class Channels:
    """The channel groups of a network, and the channel that every slot belongs to.

    Attributes:
        groups: all groups, in the order of the network.
        group_of: per slot, the index of its group, -1 if it belongs to none.
        channel_of: per slot, the index of its channel in the group.
    """

    groups: tuple[Group, ...]
    group_of: IntArray
    channel_of: IntArray

    def count(self, labels: IntArray) -> list[int]:
        """Count the labels of a dimension, whose size is then a constant plus multiples of group widths.

        Returns:
            The number of labels that belong to no group, then for each group how often each channel occurs.
        """
        group = np.where(labels >= 0, self.group_of[labels], -1)
        counts: list[int] = (
            np.bincount(group + 1, minlength=len(self.groups) + 1) // self._divisors
        ).tolist()
        return counts

    @cached_property
    def _divisors(self) -> IntArray:
        return np.array([1, *(max(1, group.channels) for group in self.groups)], dtype=np.int64)


def find_channels(slots: SlotTable, extents: Sequence[IntArray]) -> Channels:
    """Resolve all equalities and sort the channels into groups.

    Channels belong to one group if they own equally many slots in the same tensor dimensions,
    are counted equally often in every cost, and are frozen for the same reason.

    Args:
        slots: the table after propagation.
        extents: label vectors that costs depend on.

    Returns:
        The channels.
    """
    component = slots.components()
    role, rank = slots.roles()
    reason, texts = slots.reasons(component)
    owner = _owners(slots)
    # A component that no parameter or buffer writes (a position in a new tensor) is no channel.
    written = np.flatnonzero((role == 0) & (owner >= 0))
    first = np.full(len(reason), np.iinfo(np.int64).max, dtype=np.int64)
    np.minimum.at(first, component[written], rank[written] * slots.size + written)
    chosen = np.unique(component[written])
    chosen = chosen[np.argsort(first[chosen], kind="stable")]
    makes = _makes(slots, component, owner, extents)
    group_of_component = np.full(len(reason), -1, dtype=np.int64)
    channel_of_component = np.full(len(reason), -1, dtype=np.int64)
    numbers: dict[tuple[int, bytes], int] = {}
    sizes: list[int] = []
    reasons: list[str | None] = []
    for channel in chosen:
        why = int(reason[channel])
        number = numbers.setdefault((why, makes[channel]), len(numbers))
        if number == len(sizes):
            sizes.append(0)
            reasons.append(texts[why] if why >= 0 else None)
        group_of_component[channel] = number
        channel_of_component[channel] = sizes[number]
        sizes[number] += 1
    group_of, channel_of = group_of_component[component], channel_of_component[component]
    members = _members(slots, owner, group_of, channel_of)
    taken: set[str] = set()
    groups = tuple(
        Group(distinct_name(_producer(found), taken), found, why)
        for found, why in zip(members, reasons, strict=True)
    )
    return Channels(groups, group_of, channel_of)


def _owners(slots: SlotTable) -> IntArray:
    """Number, per slot, the tensor dimension that it belongs to, -1 for none."""
    owner = np.full(slots.size, -1, dtype=np.int64)
    for number, (name, dim) in enumerate(slots.owners):
        owner[slots.span(name, dim)] = number
    return owner


def _makes(
    slots: SlotTable, component: IntArray, owner: IntArray, extents: Sequence[IntArray]
) -> list[bytes]:
    """Count, per channel, its slots in each tensor dimension, and how often each cost counts it."""
    own = owner >= 0
    holders = [component[own], *(component[labels] for labels in extents)]
    places = [owner[own], *(np.full(len(found), len(slots.owners) + at) for at, found in enumerate(extents))]
    columns = len(slots.owners) + len(extents)
    pairs, counts = np.unique(np.concatenate(holders) * columns + np.concatenate(places), return_counts=True)
    rows = np.stack([pairs % columns, counts], axis=1)
    borders = np.searchsorted(pairs, np.arange(int(component.max(initial=-1)) + 2) * columns)
    return [rows[start:end].tobytes() for start, end in pairwise(borders.tolist())]


def _members(
    slots: SlotTable, owner: IntArray, group_of: IntArray, channel_of: IntArray
) -> list[tuple[Member, ...]]:
    """List, per group, its tensor dimensions with the slots of each channel, in the order of the network."""
    role, rank = slots.roles()
    used = np.flatnonzero((group_of >= 0) & (owner >= 0))
    order = used[np.lexsort((used, channel_of[used], owner[used], group_of[used]))]
    breaks = np.flatnonzero(np.diff(group_of[order] * (owner.max(initial=0) + 1) + owner[order])) + 1
    members: dict[int, list[tuple[int, Member]]] = {}
    for run in np.split(order, breaks):
        if len(run) == 0:
            continue
        name, dim = slots.owners[int(owner[run[0]])]
        start = int(slots.span(name, dim)[0])
        kind = role_of(int(role[run[0]])) if role[run[0]] >= 0 else Role.CARRIER
        member = Member(name, dim, kind, (run - start).reshape(int(channel_of[run].max()) + 1, -1))
        members.setdefault(int(group_of[run[0]]), []).append((int(rank[run[0]]), member))
    return [
        tuple(member for _, member in sorted(members[number], key=lambda pair: pair[0]))
        for number in range(len(members))
    ]


def _producer(members: Iterable[Member]) -> str:
    """Return the path of the first module that writes the channels."""
    first = next(member for member in members if member.role is Role.PRODUCER)
    return first.module or first.tensor
