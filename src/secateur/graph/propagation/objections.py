"""Record that an operator rejects the axis of a rectangle that an earlier one left free."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce

from torch.fx import Node

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels
from secateur.graph.propagation.findings import Choice, Findings, Hints, next_axis


class Objections:
    """What one operator may object to.

    After an objection, operands further on no longer match. That is a consequence, so no further objection is
    raised.

    Args:
        node: the operator.
        position: its place in the program.
        findings: choices and objections so far.
        hints: axes that were asked for.
    """

    def __init__(self, node: Node, position: int, findings: Findings, hints: Hints) -> None:
        self._name = node.name
        self._bit = 1 << position
        self._findings = findings
        self._hints = hints
        behind = [findings.behind.get(source.name, 0) for source in node.all_input_nodes]
        if any(behind):
            findings.behind[node.name] = reduce(operator.or_, behind)

    def raise_to(self, labels: Labels, *, own: bool) -> None:
        """Object to the choice that left channels free, unless an earlier objection explains the misfit.

        Args:
            labels: the channels.
            own: whether earlier objections of this operator count as well.
        """
        if labels is None or not len(labels) or not self._findings.choices:
            return
        made = self._made(labels[:1]) or self._made(sorted(self._findings.alike.get(int(labels[0]), ())))
        nearest = min((len(choice.labels) for choice in made), default=0)
        behind = self._findings.behind.get(self._name, 0)
        blamed = behind if own else behind & ~self._bit
        for choice in made:
            explained = blamed & ~self._findings.behind.get(choice.node, 0)
            if len(choice.labels) > nearest or explained:
                continue
            self._findings.objections.add(choice.node)
            if next_axis(choice, self._hints.axes) is not None:
                self._findings.behind[self._name] = behind | self._bit

    def _made(self, slots: Sequence[int] | IntArray) -> list[Choice]:
        """Find the choices that left any of some channels free."""
        found = [choice for slot in slots for choice in self._findings.left_free.get(int(slot), ())]
        return list({choice.node: choice for choice in found}.values())
