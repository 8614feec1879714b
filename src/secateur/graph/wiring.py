"""Hold all that is known of a traced network: programs, channels, readers and costs.

The wiring of a network never changes: cutting only drops slots from it. It keeps the original
programs and the original numbering, so a network that was cut several times can still be compared
with its masked original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secateur.graph.branches import Operand, ResidualBranch
from secateur.graph.capture.program import Program
from secateur.graph.costs import CostModel
from secateur.graph.extents import Extents
from secateur.graph.groups import Group, IntArray
from secateur.graph.propagation.attention_units import Attention
from secateur.graph.propagation.findings import Attribute, Findings, OperatorMacs, Read, Rescale, Statistic


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
    """All results of tracing, indexed by the slots of the traced network.

    Attributes:
        evaluation: the evaluation-mode forward pass.
        training: the training-mode forward pass.
        shapes: shape of every parameter and buffer.
        aliases: other names of tied tensors, to the name under which they are known here.
        groups: all channel groups, prunable and frozen, in the order of the network.
        group_of: per slot, the index of its group, -1 if it belongs to none.
        channel_of: per slot, the index of its channel in the group.
        spans: first slot and size of every tensor dimension.
        distinct_reads: what contracts over channels, over all programs, one per module and weight.
        attributes: integer attributes of modules that follow the widths.
        work: multiply-accumulates of the operators of the evaluation program.
        cost_model: the costs as polynomials of the widths of ``groups``.
        extents: the sizes of all values of the evaluation program, as functions of the widths.
        rescales: weights that are normalised by their own norm, whose length must follow a cut.
        ungrouped: for each parameter that no group holds, the reason.
        advice: for groups with a size that the code gives as a number, what to write instead, by name.
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
    distinct_reads: tuple[Read, ...] = field(repr=False)
    attributes: tuple[Attribute, ...] = field(repr=False)
    work: tuple[OperatorMacs, ...] = field(repr=False)
    cost_model: CostModel = field(repr=False)
    extents: Extents = field(repr=False)
    rescales: tuple[Rescale, ...] = field(default=(), repr=False)
    ungrouped: Mapping[str, str] = field(default_factory=dict, repr=False)
    advice: Mapping[str, str] = field(default_factory=dict, repr=False)
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


def distinct_reads(findings: Sequence[Findings]) -> tuple[Read, ...]:
    """List the places that read channels in all programs: a module that reads with one weight counts once."""
    found: dict[tuple[str, str], Read] = {}
    for one in findings:
        for read in one.reads:
            known = found.setdefault((read.module, read.tensor or read.node), read)
            if known.at_input and not read.at_input:
                found[read.module, read.tensor or read.node] = read
    return tuple(found.values())


def distinct_attributes(findings: Sequence[Findings]) -> tuple[Attribute, ...]:
    """List the attributes that follow widths in all programs, each once."""
    found: dict[tuple[str, str, int | None], Attribute] = {}
    for one in findings:
        for item in one.attributes:
            found.setdefault((item.module, item.name, item.index), item)
    return tuple(found.values())
