"""Choose which axis of a rectangle of channels stays free, and take the objections of later operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.fx import Node

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels

WHOLE = -1
"""In place of the axis that a rectangle leaves free: none."""


@dataclass(frozen=True)
class Choice:
    """A rectangle of channels: one axis is free, the others are coupled.

    Attributes:
        node: the operator.
        units: for each axis that may be free, how many channels it would leave.
        chosen: the axis that was left free, as an index of ``units``.
        labels: what is left of the rectangle.
    """

    node: str
    units: tuple[int, ...]
    chosen: int
    labels: IntArray


@dataclass
class AxisChoices:
    """Choose which axes stay free in one walk through a program.

    A reshape splits channels into a rectangle, such as heads by channels of a head. One axis of it stays
    free. A later operator can object to the choice; then propagation is repeated with another axis
    (:func:`other_axes`).

    Attributes:
        asked: the axis to leave free, by the name of the operator that splits.
        settled: as ``asked``, where no operator can object.
        choices: all choices so far.
        objections: operators whose choice does not suit a later operator.
    """

    asked: Mapping[str, int] = field(default_factory=dict)
    settled: Mapping[str, int] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    objections: set[str] = field(default_factory=set)
    _left_free: dict[int, list[Choice]] = field(default_factory=dict)
    """For each slot, the choices that left it free."""
    _joined: dict[int, set[int]] = field(default_factory=dict)
    """For the first slot of a vector, the first slots of all vectors that it was joined to."""
    _blamed: dict[str, frozenset[str]] = field(default_factory=dict)
    """For each operator, those that it depends on and that objected, perhaps itself."""

    def choose(self, node: str, units: Sequence[int], axes: Sequence[int] = ()) -> int:
        """Choose the axis that stays free: the one with most units, if nothing else is known.

        Args:
            node: the operator.
            units: how many channels each axis would leave.
            axes: the place of each of them among all axes, if there are others.

        Returns:
            An index of ``units``; ``WHOLE`` if none may be free.
        """
        settled = self.settled.get(node)
        if settled == WHOLE:
            return WHOLE
        if settled is not None and settled in axes:
            return axes.index(settled)
        asked = self.asked.get(node)
        # An operator may make two rectangles, of which one has fewer axes.
        return int(np.argmax(units)) if asked is None or asked >= len(units) else asked

    def record(self, node: str, units: Sequence[int], chosen: int, labels: IntArray) -> None:
        """Record a choice, so that a later operator can object to it.

        Args:
            node: the operator.
            units: how many channels each axis would leave.
            chosen: the axis that was left free, as an index of ``units``.
            labels: what is left of the rectangle.
        """
        if node in self.settled or len(units) > 1:
            choice = Choice(node, tuple(units), chosen, labels)
            self.choices.append(choice)
            for slot in labels.tolist():
                self._left_free.setdefault(slot, []).append(choice)

    def join(self, left: int, right: int) -> None:
        """Record that two vectors, named by their first slots, were joined."""
        one, other = self._joined.get(left, {left}), self._joined.get(right, {right})
        if one is not other:
            both = one | other
            self._joined |= dict.fromkeys(both, both)

    def enter(self, node: Node) -> None:
        """Take over, for an operator, the objections that may explain a misfit of its arguments."""
        blamed = [self._blamed[source.name] for source in node.all_input_nodes if source.name in self._blamed]
        if blamed:
            self._blamed[node.name] = frozenset().union(*blamed)

    def reject(self, node: str, labels: Labels, *, own: bool) -> None:
        """Reject the choice that left channels free.

        After an objection, operands further on no longer match. That is a consequence, so no further
        objection is raised.

        Args:
            node: the operator that objects.
            labels: the channels.
            own: whether earlier objections of this operator explain a misfit as well.
        """
        if labels is None or not len(labels) or not self.choices:
            return
        first = int(labels[0])
        choices = self._that_left_free([first]) or self._that_left_free(sorted(self._joined.get(first, ())))
        nearest = min((len(choice.labels) for choice in choices), default=0)
        blamed = self._blamed.get(node, frozenset())
        causes = blamed if own else blamed - {node}
        for choice in choices:
            explained = causes - self._blamed.get(choice.node, frozenset())
            if len(choice.labels) > nearest or explained:
                continue
            self.objections.add(choice.node)
            if self.next_axis(choice) is not None:
                self._blamed[node] = blamed | {node}

    def next_axis(self, choice: Choice) -> int | None:
        """Return the axis to try after the one that a choice left free; ``None`` if all were tried.

        Try the axes before the largest one, nearest first; if the largest is the first axis, try the second.
        """
        if choice.node in self.settled:
            return None
        if choice.node not in self.asked:
            return choice.chosen - 1 if choice.chosen > 0 else choice.chosen + 1
        largest = choice.units.index(max(choice.units))
        return choice.chosen - 1 if 0 < choice.chosen < largest else None

    def _that_left_free(self, slots: Sequence[int]) -> list[Choice]:
        """List the choices that left any of some channels free; of each operator, the last."""
        found = [choice for slot in slots for choice in self._left_free.get(slot, ())]
        return list({choice.node: choice for choice in found}.values())


def other_axes(walks: Sequence[AxisChoices]) -> dict[str, int]:
    """Choose another axis for every choice that was objected to.

    Args:
        walks: the choices in each program of a network.

    Returns:
        The axes to ask for in another walk, by operator; empty if nothing is left to try.
    """
    axes = {
        choice.node: walk.next_axis(choice)
        for walk in walks
        for choice in walk.choices
        if choice.node in walk.objections
    }
    return {node: axis for node, axis in axes.items() if axis is not None}
