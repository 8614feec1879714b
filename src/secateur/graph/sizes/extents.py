"""Express the size of every dimension of every value in a program as a function of the group widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.graph.groups import IntArray
from secateur.graph.labels import Value
from secateur.graph.propagation.propagate import Environment

Dims = tuple[int, ...]
"""For each dimension of a value, the number of its extent."""


@dataclass(frozen=True, eq=False)
class Extents:
    """Sizes that depend on widths: each is a constant plus whole multiples of group widths.

    Attributes:
        constants: the part of each extent that no group owns, shape ``(extents,)``.
        slots: how often each channel of each group counts, shape ``(extents, groups)``.
        of: for each node of the program by name, the extents of each of its results.
    """

    constants: IntArray
    slots: IntArray
    of: Mapping[str, tuple[Dims, ...]] = field(repr=False)

    def sizes(self, widths: IntArray) -> IntArray:
        """Compute the size of every extent.

        Args:
            widths: channels of each group, shape ``(..., groups)``.

        Returns:
            Shape ``(..., extents)``.

        >>> extents = Extents(np.array([3, 0]), np.array([[0, 0], [1, 4]]), {})
        >>> extents.sizes(np.array([[8, 16], [8, 2]])).tolist()
        [[3, 72], [3, 16]]
        """
        return np.asarray(widths @ self.slots.T + self.constants, dtype=np.int64)


def find_extents(env: Environment, group_of: IntArray, widths: IntArray) -> Extents:
    """Write the sizes of all values of a labelled program down.

    Args:
        env: what is known of each node's result.
        group_of: per slot, the index of its group, -1 if it belongs to none.
        widths: channels of each group, shape ``(groups,)``.
    """
    counts = _Counts(group_of, widths)
    of = {}
    for node, found in env.items():
        values = found if isinstance(found, Sequence) else [found]
        dims = tuple(counts.dims(value) for value in values if isinstance(value, Value))
        if dims:
            of[node.name] = dims
    return counts.extents(of)


class _Counts:
    """Numbers extents in the order in which they appear, equal ones once."""

    def __init__(self, group_of: IntArray, widths: IntArray) -> None:
        self._group_of = group_of
        self._sizes = widths
        self._numbers: dict[tuple[int, ...], int] = {}
        self._known: dict[bytes, int] = {}

    def dims(self, value: Value) -> Dims:
        """Number the extents of one value."""
        return tuple(
            self._number((size, *[0] * len(self._sizes))) if labels is None else self._labelled(labels)
            for size, labels in zip(value.shape, value.labels, strict=True)
        )

    def extents(self, of: Mapping[str, tuple[Dims, ...]]) -> Extents:
        """Return all extents."""
        rows = np.array(list(self._numbers), dtype=np.int64).reshape(len(self._numbers), len(self._sizes) + 1)
        return Extents(rows[:, 0], rows[:, 1:], of)

    def _labelled(self, labels: IntArray) -> int:
        key = labels.tobytes()
        if key not in self._known:
            group = np.where(labels >= 0, self._group_of[labels], -1)
            counts = np.bincount(group + 1, minlength=len(self._sizes) + 1)
            multiples = counts[1:] // np.maximum(self._sizes, 1)
            self._known[key] = self._number((int(counts[0]), *multiples.tolist()))
        return self._known[key]

    def _number(self, row: tuple[int, ...]) -> int:
        return self._numbers.setdefault(row, len(self._numbers))
