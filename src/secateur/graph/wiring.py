"""Wiring: from labels and equalities to channels, groups, readers and costs.

The wiring of a network never changes: cutting only drops slots from it. It keeps the original
programs and the original numbering, so a network that was cut several times can still be compared
with its masked original.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from secateur.graph.branches import Operand, ResidualBranch
from secateur.graph.capture.program import Program
from secateur.graph.costs import CostModel
from secateur.graph.groups import Group, IntArray, Member, Role
from secateur.graph.labels import SlotTable, role_of
from secateur.graph.propagation.attention_units import Attention
from secateur.graph.propagation.findings import Attribute, Findings, OperatorMacs, Read, Rescale, Statistic
from secateur.graph.sizes.extents import Extents


@dataclass(frozen=True)
class Pass:
    """One captured forward pass, with what the rules said of its operators.

    Attributes:
        program: the operators.
        reads: operators that contract over channels.
        statistics: operators that look at all channels at once.
        flags: for operators that run in training mode though the program says otherwise, which argument
            tells the mode.
        operands: where the values of residual branches are added.
    """

    program: Program = field(repr=False)
    reads: tuple[Read, ...] = field(repr=False)
    statistics: tuple[Statistic, ...] = field(repr=False)
    flags: Mapping[str, int] = field(default_factory=dict, repr=False)
    operands: tuple[Operand, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Wiring:
    """What hangs together in a network, in the numbering of the network as it was traced.

    Attributes:
        evaluation: the evaluation-mode forward pass.
        training: the training-mode forward pass.
        shapes: shape of every parameter and buffer.
        aliases: other names of tied tensors, to the name under which they are known here.
        groups: all channel groups, prunable and frozen, in the order of the network.
        group_of: per slot, the index of its group, -1 if it belongs to none.
        channel_of: per slot, the index of its channel in the group.
        spans: first slot and size of every tensor dimension.
        places: where channels are contracted, over all programs, one per module and weight.
        attributes: integer attributes of modules that follow the widths.
        work: multiply-accumulates of the operators of the evaluation program.
        cost_model: the costs as polynomials of the widths of ``groups``.
        extents: the sizes of all values of the evaluation program, as functions of the widths.
        rescales: weights that are normalised by their own norm, whose length must follow a cut.
        ungrouped: for each parameter that no group holds, the reason.
        numbers: for groups with a size that the code gives as a number, what to write instead, by name.
        attentions: what is removed from each attention, and what else could be.
        branches: the residual branches, in the order of the network; their slots follow those of channels.
    """

    evaluation: Pass = field(repr=False)
    training: Pass = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    aliases: Mapping[str, str] = field(repr=False)
    groups: tuple[Group, ...]
    group_of: IntArray = field(repr=False)
    channel_of: IntArray = field(repr=False)
    spans: Mapping[tuple[str, int], tuple[int, int]] = field(repr=False)
    places: tuple[Read, ...] = field(repr=False)
    attributes: tuple[Attribute, ...] = field(repr=False)
    work: tuple[OperatorMacs, ...] = field(repr=False)
    cost_model: CostModel = field(repr=False)
    extents: Extents = field(repr=False)
    rescales: tuple[Rescale, ...] = field(default=(), repr=False)
    ungrouped: Mapping[str, str] = field(default_factory=dict, repr=False)
    numbers: Mapping[str, str] = field(default_factory=dict, repr=False)
    attentions: tuple[Attention, ...] = ()
    branches: tuple[ResidualBranch, ...] = ()

    @property
    def program(self) -> Program:
        """Return the evaluation-mode program."""
        return self.evaluation.program

    @property
    def reads(self) -> tuple[Read, ...]:
        """List the operators of the evaluation-mode program that contract over channels."""
        return self.evaluation.reads

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """List the operators of the evaluation-mode program that look at all channels at once."""
        return self.evaluation.statistics


@dataclass(frozen=True)
class Channels:
    """Which channel, of which group, every slot belongs to."""

    groups: tuple[Group, ...]
    group_of: IntArray
    channel_of: IntArray


def find_channels(slots: SlotTable, extents: Sequence[IntArray]) -> Channels:
    """Resolve all equalities and sort the channels into groups.

    Channels are of the same make if they own equally many slots in the same tensor dimensions,
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
    # What is written into no tensor of the network (a position in a value made from nothing) is no channel.
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
        Group(_name(found, taken), found, why) for found, why in zip(members, reasons, strict=True)
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


def _name(members: Iterable[Member], taken: set[str]) -> str:
    """Return the path of the first producer, with a number where several groups have the same one."""
    first = next(member for member in members if member.role is Role.PRODUCER)
    base = first.module or first.tensor
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}#{number}"
    taken.add(name)
    return name


def distinct_reads(findings: Sequence[Findings]) -> tuple[Read, ...]:
    """List the places that read channels in all programs: a module that reads with one weight counts once."""
    found: dict[tuple[str, str], Read] = {}
    for note in findings:
        for read in note.reads:
            known = found.setdefault((read.module, read.tensor or read.node), read)
            if known.at_input and not read.at_input:
                found[read.module, read.tensor or read.node] = read
    return tuple(found.values())


def distinct_attributes(findings: Sequence[Findings]) -> tuple[Attribute, ...]:
    """List the attributes that follow widths in all programs, each once."""
    found: dict[tuple[str, str, int | None], Attribute] = {}
    for note in findings:
        for item in note.attributes:
            found.setdefault((item.module, item.name, item.index), item)
    return tuple(found.values())
