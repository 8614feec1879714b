"""Express sizes in a network's code as linear forms in the channels, and as vectors of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, SlotTable, Value
from secateur.graph.propagation.linear_forms import Form, multiples
from secateur.graph.propagation.size_source import (
    AttributeKey,
    Computed,
    FromAttribute,
    FromTensor,
    Power,
    Source,
)


@dataclass(frozen=True)
class Solution:
    """What an attribute counts.

    Attributes:
        labels: the vector; ``None`` if the attribute is a constant.
        place: the operator that shows it, for messages.
    """

    labels: Labels
    place: str


@dataclass(frozen=True)
class Quotient:
    """A size divided by another one, taken for a constant: an equation, since both must change alike."""

    left: Source
    right: Source
    value: int = field(compare=False)
    place: str = field(compare=False)


@dataclass(frozen=True)
class KnownSizes:
    """What the sizes of one program are known to count.

    Attributes:
        slots: the slots and the equalities between them.
        values: the value of every operator, by its name.
        numbers: for each attribute, the negative number that stands for it in a form while it is unknown.
        solutions: the attributes that are known.
        quotients: what was taken for a constant in the forms so far.
    """

    slots: SlotTable
    values: Mapping[str, Any]
    numbers: Mapping[AttributeKey, int]
    solutions: dict[AttributeKey, Solution]
    quotients: list[Quotient] = field(default_factory=list)

    def attribute(self, number: int) -> AttributeKey:
        """Return the attribute that a number stands for."""
        return list(self.numbers)[-1 - number]

    def is_constant(self, attribute: FromAttribute) -> bool:
        """Return whether an attribute is known not to change."""
        solution = self.solutions.get(attribute.key)
        return solution is not None and self.counted(solution.labels, attribute.value).fixed

    def layouts(self, source: Source | int, place: str) -> list[IntArray]:
        """List the labels that an expression counts, in each order in which code may lay them out.

        Args:
            source: the expression.
            place: where it is used.
        """
        if isinstance(source, FromAttribute):
            solution = self.solutions.get(source.key)
            return [] if solution is None or solution.labels is None else [solution.labels]
        if isinstance(source, FromTensor):
            value = self._value(source)
            labels = None if value is None else value.labels[source.dim]
            return [] if labels is None else [labels]
        if not isinstance(source, Computed):
            return []
        if source.operator == "add":
            pairs = product(self.layouts(source.left, place), self.layouts(source.right, place))
            return [np.concatenate(pair) for pair in pairs]
        if source.operator == "mul":
            several, times = self.factored(source, place)
            found = [] if several is source else self.layouts(several, place)
            return [vector for labels in found for vector in multiples(labels, times)]
        return []

    def factored(self, source: Computed, place: str) -> tuple[Source | int, int]:
        """Split a product into what may change and a fixed factor, which is one if both may change.

        Args:
            source: the product.
            place: where it is used.
        """
        for one, other in ((source.left, source.right), (source.right, source.left)):
            factor = None if isinstance(one, int) else self.form(other, place)
            if factor is not None and factor.fixed:
                return one, int(factor.value)
        return source, 1

    def counted(self, labels: Labels, size: int) -> Form:
        """Count the kept labels of a vector; the ones that can never be removed are a constant."""
        if labels is None:
            return Form.constant(size)
        channels = self.slots.components()[labels]
        moving = channels[self.slots.removable()[channels]]
        return Form.of(moving, float(len(labels) - len(moving)), float(len(labels)))

    def form(self, source: Source | int, place: str) -> Form | None:
        """Convert an expression to a linear form; ``None`` if it is not linear, or a part is unknown.

        Args:
            source: the expression.
            place: where it is used, for quotients that are noted on the way.
        """
        if isinstance(source, int):
            return Form.constant(source)
        if isinstance(source, FromAttribute):
            solution = self.solutions.get(source.key)
            if solution is None:
                return Form.of(np.array([self.numbers[source.key]]), 0.0, source.value)
            return self.counted(solution.labels, source.value)
        if isinstance(source, FromTensor):
            value = self._value(source)
            return None if value is None else self.counted(value.labels[source.dim], value.shape[source.dim])
        if isinstance(source, Power):
            return None
        left, right = self.form(source.left, place), self.form(source.right, place)
        if left is None or right is None:
            return None
        if source.operator == "add":
            return left.plus(right)
        if source.operator == "sub":
            return left.minus(right)
        if source.operator == "mul":
            factor, form = (left, right) if left.fixed else (right, left)
            return form.times(factor.rest) if factor.fixed else None
        if source.operator == "floordiv" and right.value:
            return self._divided(source, left, right, place)
        return Form.constant(left.value % right.value) if left.fixed and right.fixed and right.value else None

    def _divided(self, source: Computed, left: Form, right: Form, place: str) -> Form | None:
        """Divide linearly by a constant; take a quotient of two sizes for a constant, and note it."""
        if left.fixed and right.fixed:
            return Form.constant(left.value // right.value)
        if left.fixed or left.value % right.value:
            return None
        if right.fixed:
            return left.times(1 / right.value)
        assert not isinstance(source.left, int)
        assert not isinstance(source.right, int)
        quotient = Quotient(source.left, source.right, int(left.value // right.value), place)
        if quotient not in self.quotients and not left.minus(right.times(quotient.value)).fixed:
            self.quotients.append(quotient)
        return Form.constant(quotient.value)

    def _value(self, source: FromTensor) -> Value | None:
        found = self.slots.tensor(source.tensor) if source.tensor else self.values.get(source.node)
        if isinstance(found, Sequence):
            found = found[source.result] if source.result < len(found) else None
        return found if isinstance(found, Value) and source.dim < len(found.shape) else None
