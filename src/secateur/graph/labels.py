"""Number slots and collect equalities between them, from which channels are found.

Every index of every dimension of every parameter and buffer is a *slot*, a number. Walking
through the captured program, each value carries per dimension a *label* vector, one slot per
index, or nothing. Rules say which labels must be equal; equalities are only collected here and
resolved once, by connected components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from secateur.graph.groups import IntArray, Role

BoolArray = np.ndarray[tuple[int], np.dtype[np.bool_]]

Labels = IntArray | None
"""One slot per index of a dimension, or ``None`` where a dimension holds no channels."""

_ROLES = (Role.PRODUCER, Role.CONSUMER, Role.CARRIER)


@dataclass(frozen=True)
class Value:
    """What is known of one tensor in the captured program.

    Attributes:
        shape: its sizes.
        labels: per dimension, the label vector or ``None``.
        indices_of: the channels whose indices its numbers are, such as chosen experts; ``None`` for others.
    """

    shape: tuple[int, ...]
    labels: tuple[Labels, ...]
    indices_of: Labels = None

    @staticmethod
    def plain(shape: tuple[int, ...]) -> Value:
        """Make a value without channels."""
        return Value(shape, (None,) * len(shape))

    @property
    def extents(self) -> list[IntArray | int]:
        """List the labels of each dimension, or its size where it has none."""
        pairs = zip(self.shape, self.labels, strict=True)
        return [size if labels is None else labels for size, labels in pairs]

    def replaced(self, dim: int, labels: Labels) -> Value:
        """Return the same value with other labels in one dimension of the same size."""
        changed = list(self.labels)
        changed[dim] = labels
        return Value(self.shape, tuple(changed))


class SlotTable:
    """All slots of a network, the equalities between them, and what freezes them.

    Args:
        shapes: shape of every parameter and buffer by its qualified name.

    Attributes:
        owners: every tensor dimension, in the order of its slots.
        spans: first slot and size of every tensor dimension.
        size: number of slots so far.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.owners: list[tuple[str, int]] = []
        self.spans: dict[tuple[str, int], tuple[int, int]] = {}
        self._shapes = dict(shapes)
        self.tensor_slots = 0
        for name, shape in shapes.items():
            for dim, size in enumerate(shape):
                self.owners.append((name, dim))
                self.spans[name, dim] = (self.tensor_slots, size)
                self.tensor_slots += size
        self.size = self.tensor_slots
        self._left: list[IntArray] = []
        self._right: list[IntArray] = []
        self._frozen: list[tuple[IntArray, str]] = []
        self._final: list[tuple[IntArray, str]] = []
        self._claims: list[tuple[IntArray, Role]] = []
        self._components: IntArray | None = None
        self._removable: BoolArray | None = None

    def tensor(self, name: str) -> Value:
        """Return the value of a parameter or buffer: its own slots in every dimension."""
        shape = self._shapes[name]
        return Value(shape, tuple(self.span(name, dim) for dim in range(len(shape))))

    def span(self, name: str, dim: int) -> IntArray:
        """Return the slots of one dimension of a parameter or buffer."""
        start, size = self.spans[name, dim]
        return np.arange(start, start + size, dtype=np.int64)

    def fresh(self, count: int) -> IntArray:
        """Make slots that belong to no parameter or buffer, for a dimension that an operator creates."""
        start = self.size
        self.size += count
        self._components = self._removable = None
        return np.arange(start, self.size, dtype=np.int64)

    def are_of_tensors(self, labels: IntArray) -> bool:
        """Return whether any of some labels are slots of a parameter or buffer."""
        return bool((labels < self.tensor_slots).any())

    def join(self, left: IntArray, right: IntArray) -> None:
        """Demand that the slots of two vectors of one length are removed together, index by index."""
        if left.shape != right.shape:
            raise ValueError(f"cannot join labels of shapes {left.shape} and {right.shape}")
        self._left.append(left.ravel())
        self._right.append(right.ravel())
        self._components = self._removable = None

    def freeze(self, slots: IntArray, reason: str, *, final: bool = False) -> None:
        """Forbid the removal of slots, for a reason that the user will read.

        Args:
            slots: what stays.
            reason: in words.
            final: whether no other code in the network could free them. Such a reason is named before others.
        """
        (self._final if final else self._frozen).append((slots.ravel(), reason))
        self._removable = None

    def set_role(self, slots: IntArray, role: Role) -> None:
        """Record what a dimension does with its channels; the first claim on a slot counts."""
        self._claims.append((slots.ravel(), role))
        self._removable = None

    def roles(self) -> tuple[IntArray, IntArray]:
        """Return, per slot, the index of its role in ``Role`` order (-1: none) and the rank of its claim.

        What is read and no layer writes, such as learned queries, is written by the tensors that hold it.
        """
        role = np.full(self.size, -1, dtype=np.int64)
        rank = np.full(self.size, np.iinfo(np.int64).max, dtype=np.int64)
        for order in range(len(self._claims) - 1, -1, -1):
            slots, kind = self._claims[order]
            role[slots] = _ROLES.index(kind)
            rank[slots] = order
        component = self.components()
        read, written = (
            np.isin(component, component[role == _ROLES.index(kind)])
            for kind in (Role.CONSUMER, Role.PRODUCER)
        )
        writers = np.flatnonzero(((role < 0) & read & ~written)[: self.tensor_slots])
        role[writers] = _ROLES.index(Role.PRODUCER)
        rank[writers] = len(self._claims)
        return role, rank

    def components(self) -> IntArray:
        """Number the channels: slots with one number are removed together."""
        if self._components is None:
            left = np.concatenate([*self._left, np.zeros(0, np.int64)])
            right = np.concatenate([*self._right, np.zeros(0, np.int64)])
            links = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(self.size, self.size))
            self._components = connected_components(links, directed=False)[1].astype(np.int64)
        return self._components

    def removable(self) -> BoolArray:
        """Find, per channel, whether a tensor writes it and nothing freezes it."""
        if self._removable is None:
            components = self.components()
            role = self.roles()[0][: self.tensor_slots]
            reason, _ = self.reasons(components)
            written = np.zeros(len(reason), dtype=bool)
            written[components[: self.tensor_slots][role == _ROLES.index(Role.PRODUCER)]] = True
            self._removable = written & (reason < 0)
        return self._removable

    def reasons(self, components: IntArray) -> tuple[IntArray, list[str]]:
        """Find, per channel, the index of the first reason that freezes it (-1: free), and the reasons."""
        count = int(components.max(initial=-1)) + 1
        frozen = [*self._final, *self._frozen]
        texts = list(dict.fromkeys(text for _, text in frozen))
        index = {text: number for number, text in enumerate(texts)}
        first = np.full(count, -1, dtype=np.int64)
        for slots, text in reversed(frozen):
            first[components[slots]] = index[text]
        return first, texts


def role_of(index: int) -> Role:
    """Return the role with an index as given by :meth:`SlotTable.roles`."""
    return _ROLES[index]
