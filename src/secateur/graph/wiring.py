"""Wiring: from labels and equalities to channels, groups, readers and costs.

The wiring of a network never changes: cutting only drops slots from it. It keeps the original
programs and the original numbering, so a network that was cut several times can still be held
against its masked original.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.graph.capture import Program
from secateur.graph.costs import CostModel
from secateur.graph.extents import Extents
from secateur.graph.groups import Group, IntArray, Member, Role
from secateur.graph.labels import SlotTable, role_of
from secateur.graph.notes import Attribute, Notes, Read, Statistic


@dataclass(frozen=True)
class Wiring:
    """What hangs together in a network, in the numbering of the network as it was traced.

    Attributes:
        program: the evaluation-mode forward pass.
        shapes: shape of every parameter and buffer.
        aliases: other names of tied tensors, to the name under which they are known here.
        groups: all channel groups, prunable and frozen, in the order of the network.
        group_of: per slot, the index of its group, -1 if it belongs to none.
        channel_of: per slot, the index of its channel in the group.
        spans: first slot and size of every tensor dimension.
        reads: operators of the evaluation program that contract over channels.
        places: where channels are contracted, over all programs, one per module and weight.
        statistics: operators of the evaluation program that look at all channels at once.
        attributes: integer attributes of modules that follow the widths.
        cost_model: the costs as polynomials of the widths of ``groups``.
        extents: the sizes of all values of the evaluation program, as functions of the widths.
        ungrouped: for each parameter that no group holds, the reason.
    """

    program: Program = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    aliases: Mapping[str, str] = field(repr=False)
    groups: tuple[Group, ...]
    group_of: IntArray = field(repr=False)
    channel_of: IntArray = field(repr=False)
    spans: Mapping[tuple[str, int], tuple[int, int]] = field(repr=False)
    reads: tuple[Read, ...] = field(repr=False)
    places: tuple[Read, ...] = field(repr=False)
    statistics: tuple[Statistic, ...] = field(repr=False)
    attributes: tuple[Attribute, ...] = field(repr=False)
    cost_model: CostModel = field(repr=False)
    extents: Extents = field(repr=False)
    ungrouped: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Channels:
    """Which channel, of which group, every slot belongs to."""

    groups: tuple[Group, ...]
    group_of: IntArray
    channel_of: IntArray


def find_channels(slots: SlotTable, extents: Sequence[IntArray]) -> Channels:
    """Resolves all equalities and sorts the channels into groups.

    Channels are of the same make if they own equally many slots in the same tensor dimensions,
    are counted equally often in every cost, and are frozen for the same reason.

    Args:
        slots: the table after the walk.
        extents: label vectors that costs depend on.

    Returns:
        The channels.
    """
    component = slots.components()
    role, rank = slots.roles()
    reason, texts = slots.reasons(component)
    count = len(reason)
    produced = np.zeros(count, dtype=bool)
    owner = _owners(slots)
    # What is written into no tensor of the network (a position in a value made from nothing) is no channel.
    produced[component[(role == 0) & (owner >= 0)]] = True
    keys = _signatures(slots, component, owner, extents, count)
    keys = keys * np.uint64(1_000_003) + reason.astype(np.uint64)
    first = np.full(count, np.iinfo(np.int64).max, dtype=np.int64)
    producers = np.flatnonzero((role == 0) & (owner >= 0))
    np.minimum.at(first, component[producers], rank[producers] * slots.size + producers)
    chosen = np.flatnonzero(produced)
    chosen = chosen[np.argsort(first[chosen], kind="stable")]
    group_of_component = np.full(count, -1, dtype=np.int64)
    channel_of_component = np.full(count, -1, dtype=np.int64)
    numbers: dict[int, int] = {}
    sizes: list[int] = []
    for channel in chosen:
        number = numbers.setdefault(int(keys[channel]), len(numbers))
        if number == len(sizes):
            sizes.append(0)
        group_of_component[channel] = number
        channel_of_component[channel] = sizes[number]
        sizes[number] += 1
    group_of, channel_of = group_of_component[component], channel_of_component[component]
    frozen = {int(group_of_component[channel]): int(reason[channel]) for channel in chosen}
    groups = _groups(slots, group_of, channel_of, role, rank, owner, sizes, frozen, texts)
    return Channels(groups, group_of, channel_of)


def _owners(slots: SlotTable) -> IntArray:
    """Per slot, the number of the tensor dimension that it belongs to, -1 for none."""
    owner = np.full(slots.size, -1, dtype=np.int64)
    for number, (name, dim) in enumerate(slots.owners):
        owner[slots.span(name, dim)] = number
    return owner


def _signatures(
    slots: SlotTable, component: IntArray, owner: IntArray, extents: Sequence[IntArray], count: int
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Per channel, a 64-bit fingerprint of where its slots lie and what counts them."""
    words = np.random.default_rng(20161106).integers(
        1, 2**63, size=len(slots.owners) + len(extents), dtype=np.uint64
    )
    keys = np.zeros(count, dtype=np.uint64)
    own = owner >= 0
    np.add.at(keys, component[own], words[owner[own]])
    for number, labels in enumerate(extents):
        np.add.at(keys, component[labels], words[len(slots.owners) + number])
    return keys


def _groups(
    slots: SlotTable,
    group_of: IntArray,
    channel_of: IntArray,
    role: IntArray,
    rank: IntArray,
    owner: IntArray,
    sizes: Sequence[int],
    frozen: Mapping[int, int],
    texts: Sequence[str],
) -> tuple[Group, ...]:
    """Builds the groups with their members and names."""
    used = np.flatnonzero((group_of >= 0) & (owner >= 0))
    order = used[np.lexsort((used, channel_of[used], owner[used], group_of[used]))]
    breaks = np.flatnonzero(np.diff(group_of[order] * (owner.max(initial=0) + 1) + owner[order])) + 1
    members: dict[int, list[tuple[int, Member]]] = {}
    for run in np.split(order, breaks):
        if len(run) == 0:
            continue
        number = int(group_of[run[0]])
        name, dim = slots.owners[int(owner[run[0]])]
        start = int(slots.span(name, dim)[0])
        kind = role_of(int(role[run[0]])) if role[run[0]] >= 0 else Role.CARRIER
        member = Member(name, dim, kind, (run - start).reshape(sizes[number], -1))
        members.setdefault(number, []).append((int(rank[run[0]]), member))
    groups: list[Group] = []
    taken: set[str] = set()
    for number in range(len(sizes)):
        ordered = tuple(member for _, member in sorted(members[number], key=lambda pair: pair[0]))
        reason = texts[frozen[number]] if frozen[number] >= 0 else None
        groups.append(Group(_name(ordered, taken), ordered, reason))
    return tuple(groups)


def _name(members: Iterable[Member], taken: set[str]) -> str:
    """Path of the first producer, with a number where several groups have the same one."""
    first = next(member for member in members if member.role is Role.PRODUCER)
    base = first.module or first.tensor
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}#{number}"
    taken.add(name)
    return name


def distinct_reads(notes: Sequence[Notes]) -> tuple[Read, ...]:
    """The places that read channels, over all programs: a module that reads with one weight counts once."""
    found: dict[tuple[str, str], Read] = {}
    for note in notes:
        for read in note.reads:
            known = found.setdefault((read.module, read.tensor or read.node), read)
            if known.at_input and not read.at_input:
                found[read.module, read.tensor or read.node] = read
    return tuple(found.values())


def distinct_attributes(notes: Sequence[Notes]) -> tuple[Attribute, ...]:
    """The attributes that follow widths, over all programs, each once."""
    found: dict[tuple[str, str, int | None], Attribute] = {}
    for note in notes:
        for item in note.attributes:
            found.setdefault((item.module, item.name, item.index), item)
    return tuple(found.values())
