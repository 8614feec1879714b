"""Sizes as equations: what a network's code reshapes with must stay true after a cut.

Each size that an operator is given is the size of a label vector, or a constant. Where it comes
from an attribute, the attribute follows the vector; where it is the size of another tensor, the
two lose channels together; where it is a quotient, dividend, divisor and quotient are tied so that
the division still comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, SlotTable, Value
from secateur.graph.notes import Attribute, Equation, Notes
from secateur.graph.sizes import Computed, FromAttribute, FromTensor, Source


@dataclass(frozen=True)
class _Term:
    """A size and the labels that it counts, if it may change."""

    size: int
    labels: Labels


def settle(notes: Notes, slots: SlotTable, env: Mapping[Node, Any]) -> None:
    """Turns all sizes that were noted in a walk into equalities between labels.

    Args:
        notes: what the walk found; attributes that follow label vectors are added.
        slots: the table that collects equalities.
        env: the value of every node.
    """
    _Settling(notes, slots, {node.name: value for node, value in env.items()}).run()


class _Settling:
    """One pass over the equations: attributes first, because quotients are made of them."""

    def __init__(self, notes: Notes, slots: SlotTable, env: Mapping[str, Any]) -> None:
        self._notes = notes
        self._slots = slots
        self._env = env
        self._ties: dict[tuple[str, str, int | None], IntArray] = {}
        self._pinned: dict[tuple[str, str, int | None], str] = {}
        self._components: IntArray | None = None
        self._joined = 0
        for item in notes.attributes:
            self._tie((item.module, item.name, item.index), item.labels)

    def run(self) -> None:
        direct = [item for item in self._notes.equations if isinstance(item.source, FromAttribute)]
        for item in direct:
            source = item.source
            assert isinstance(source, FromAttribute)
            key = (source.module, source.name, source.index)
            if item.labels is None:
                self._pinned.setdefault(key, item.place)
                continue
            if self._tie(key, item.labels):
                self._notes.attributes.append(Attribute(*key, item.labels))
        for key, place in self._pinned.items():
            if key in self._ties:
                name = f"{key[0]}.{key[1]}"
                self._slots.freeze(self._ties[key], f"'{name}' also gives a size that is fixed ({place})")
        for item in self._notes.equations:
            if not isinstance(item.source, FromAttribute):
                self._equal(item)

    def _tie(self, key: tuple[str, str, int | None], labels: IntArray) -> bool:
        """Lets an attribute follow a vector; two vectors of one attribute follow each other."""
        known = self._ties.setdefault(key, labels)
        if known is labels:
            return True
        self._meet(known, labels, "an attribute of two different sizes")
        return False

    def _equal(self, item: Equation) -> None:
        if isinstance(item.source, FromTensor):
            self._meet(self._term(item.source, item.size).labels, item.labels, item.place)
        elif isinstance(item.source, Computed) and item.source.operator == "floordiv":
            self._quotient(item, item.source)

    def _meet(self, left: Labels, right: Labels, place: str) -> None:
        """Two counts of the same channels, or of channels that must go together."""
        if left is None and right is None:
            return
        if left is None or right is None:
            self._freeze(left, place)
            self._freeze(right, place)
        elif len(left) == len(right) and not self._alike(left, right):
            self._join(left, right)

    def _alike(self, left: IntArray, right: IntArray) -> bool:
        """Whether two vectors always count the same number of channels, as far as is known."""
        fresh = self._components is None
        while True:
            if self._components is None:
                self._components = self._slots.components()
            # What was joined since can only make more vectors alike, so it is looked at last.
            if np.array_equal(np.sort(self._components[left]), np.sort(self._components[right])):
                return True
            if fresh or self._joined == 0:
                return False
            self._components, self._joined, fresh = None, 0, True

    def _join(self, left: IntArray, right: IntArray) -> None:
        self._slots.join(left, right)
        self._joined += 1

    def _quotient(self, item: Equation, source: Computed) -> None:
        self._free_attribute(item, source)
        divisor = self._term(source.right, 0)
        dividend = self._term(source.left, item.size * divisor.size if divisor.size else 0)
        if dividend.labels is None and divisor.labels is None:
            self._freeze(item.labels, item.place)
            return
        if dividend.labels is None:
            self._freeze(divisor.labels, item.place)
            self._freeze(item.labels, item.place)
            return
        if len(dividend.labels) % item.size:
            return
        count = len(dividend.labels) // item.size
        if divisor.labels is not None and item.labels is None and len(divisor.labels) == count:
            self._meet(dividend.labels, np.repeat(divisor.labels, item.size), item.place)
        elif divisor.labels is None and item.labels is not None:
            self._meet(dividend.labels, np.tile(item.labels, count), item.place)
        elif divisor.labels is None:
            self._freeze(dividend.labels, item.place)

    def _free_attribute(self, item: Equation, source: Computed) -> None:
        """Lets an attribute that is divided, and nothing else yet, follow what the quotient counts."""
        if not isinstance(source.left, FromAttribute):
            return
        key = (source.left.module, source.left.name, source.left.index)
        divisor = self._term(source.right, 0)
        if key in self._ties or key in self._pinned:
            return
        if item.labels is not None and divisor.labels is None and isinstance(source.right, int):
            labels = np.tile(item.labels, source.right)
        elif item.labels is None and divisor.labels is not None:
            labels = np.repeat(divisor.labels, item.size)
        else:
            return
        self._ties[key] = labels
        self._notes.attributes.append(Attribute(*key, labels))

    def _freeze(self, labels: Labels, place: str) -> None:
        if labels is not None:
            self._slots.freeze(labels, f"a size in the code cannot follow ({place})")

    def _term(self, source: Source | int, size: int) -> _Term:
        """The size and labels of a part of an equation."""
        if isinstance(source, int):
            return _Term(source, None)
        if isinstance(source, FromAttribute):
            labels = self._ties.get((source.module, source.name, source.index))
            return _Term(size if labels is None else len(labels), labels)
        if isinstance(source, FromTensor):
            value = self._value(source)
            if value is not None and source.dim < len(value.shape):
                return _Term(value.shape[source.dim], value.labels[source.dim])
        return _Term(size, None)

    def _value(self, source: FromTensor) -> Value | None:
        found = self._slots.tensor(source.tensor) if source.tensor else self._env.get(source.node)
        if isinstance(found, Sequence):
            found = found[source.place] if source.place < len(found) else None
        return found if isinstance(found, Value) else None
