"""Express the size of every dimension of every value in a program as a function of the group widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.graph.channels import Channels
from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
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


def find_extents(env: Environment, channels: Channels) -> Extents:
    """Express the sizes of all values of a labelled program.

    Args:
        env: what is known of each node's result.
        channels: the channels of the network.
    """
    numbers: dict[tuple[int, ...], int] = {}
    known: dict[bytes, int] = {}

    def number(size: int, labels: Labels) -> int:
        """Number the extent of a dimension; equal ones have one number."""
        if labels is None:
            return numbers.setdefault((size, *[0] * len(channels.groups)), len(numbers))
        key = labels.tobytes()
        if key not in known:
            known[key] = numbers.setdefault(tuple(channels.count(labels)), len(numbers))
        return known[key]

    of = {}
    for node, found in env.items():
        values = found if isinstance(found, Sequence) else [found]
        dims = tuple(
            tuple(map(number, value.shape, value.labels)) for value in values if isinstance(value, Value)
        )
        if dims:
            of[node.name] = dims
    rows = np.array(list(numbers), dtype=np.int64).reshape(len(numbers), len(channels.groups) + 1)
    return Extents(rows[:, 0], rows[:, 1:], of)
