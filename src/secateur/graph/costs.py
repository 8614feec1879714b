"""Costs as exact polynomials of the widths of channel groups.

The size of a dimension is a constant plus multiples of group widths (an *extent*); the elements
of a tensor and the multiply-accumulates of an operator are products of extents. All of it is
compiled to integer arrays once, so that the cost of any number of plans takes a few array
operations and no model run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.graph.groups import IntArray


@dataclass(frozen=True)
class Cost:
    """What a network needs.

    Attributes:
        params: number of elements of all parameters.
        macs: multiply-accumulates of one forward pass, for one example.
        bytes: bytes of all parameters and buffers.
        memory: peak bytes of the values that are alive at once in a forward pass of the example
            inputs, without parameters.
    """

    params: int
    macs: int
    bytes: int
    memory: int

    def share_of(self, other: Cost) -> dict[str, float]:
        """Every cost as a share of another's (0 where the other is 0).

        Example:
            >>> Cost(50, 25, 200, 10).share_of(Cost(100, 100, 400, 10))["macs"]
            0.25
        """
        return {
            name: getattr(self, name) / max(1, getattr(other, name))
            for name in ("params", "macs", "bytes", "memory")
        }

    def __str__(self) -> str:
        return (
            f"{readable(self.params)} parameters, {readable(self.macs)} MACs, "
            f"{readable(self.bytes)}B, activations {readable(self.memory)}B"
        )


def readable(number: float) -> str:
    """A number with three digits and a decimal prefix.

    Example:
        >>> readable(11_689_512), readable(1_814_073_344), readable(512)
        ('11.7 M', '1.81 G', '512 ')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:g} "


class CostModel:
    """Evaluates the costs of many plans at once, exactly.

    Made by :class:`CostModelBuilder`.

    Args:
        constants: constant part of each extent, shape ``(E,)``.
        multiples: multiple of each group's width in each extent, shape ``(E, G)``.
        sums: parameters, MACs and bytes as sums of terms.
        values: sizes of values in bytes, one term each.
        live: which values are alive together, shape ``(points, values)``, zeros and ones.
    """

    def __init__(
        self, constants: IntArray, multiples: IntArray, sums: Sequence[_Terms], values: _Terms, live: IntArray
    ) -> None:
        self._constants = constants
        self._multiples = multiples
        self._sums = tuple(sums)
        self._values = values
        self._live = live

    def evaluate(self, widths: IntArray) -> IntArray:
        """Costs of networks with the given group widths.

        Args:
            widths: number of channels of every group, integers of shape ``(..., groups)``.

        Returns:
            Parameters, MACs, bytes and activation memory, integers of shape ``(..., 4)``.
        """
        widths = np.asarray(widths, dtype=np.int64)
        flat = widths.reshape(-1, widths.shape[-1])
        # One more extent of size one serves as filler for terms with fewer factors than others.
        sizes = self._constants + flat @ self._multiples.T
        extents = np.concatenate([sizes, np.ones((len(flat), 1), np.int64)], axis=1)
        columns = [terms.products(extents).sum(axis=1) for terms in self._sums]
        alive = self._values.products(extents) @ self._live.T
        columns.append(alive.max(axis=1, initial=0))
        return np.stack(columns, axis=-1).reshape(*widths.shape[:-1], 4)


@dataclass(frozen=True)
class _Terms:
    """Products of extents with coefficients."""

    coefficients: IntArray
    factors: IntArray

    @classmethod
    def of(cls, terms: Sequence[tuple[int, tuple[int, ...]]], filler: int) -> _Terms:
        longest = max((len(extents) for _, extents in terms), default=0)
        factors = np.full((len(terms), longest), filler, dtype=np.int64)
        for row, (_, extents) in enumerate(terms):
            factors[row, : len(extents)] = extents
        return cls(np.array([coefficient for coefficient, _ in terms], dtype=np.int64), factors)

    def products(self, extents: IntArray) -> IntArray:
        result = np.broadcast_to(self.coefficients, (len(extents), len(self.coefficients))).copy()
        for column in range(self.factors.shape[1]):
            result *= extents[:, self.factors[:, column]]
        return result


class CostModelBuilder:
    """Collects extents and terms, and compiles them.

    Args:
        groups: number of channel groups.

    Example:
        >>> builder = CostModelBuilder(groups=1)
        >>> width = builder.extent(0, {0: 1})
        >>> builder.params(9, [width])
        >>> builder.build().evaluate(np.array([4])).tolist()
        [36, 0, 0, 0]
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._extents: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {}
        self._sums: tuple[dict[tuple[int, ...], int], ...] = ({}, {}, {})
        self._values: list[tuple[int, tuple[int, ...]]] = []
        self._points: dict[tuple[int, ...], None] = {}

    def extent(self, constant: int, multiples: Mapping[int, int]) -> int:
        """Registers the size of a dimension.

        Args:
            constant: the part that never changes.
            multiples: for each group index, how many indices of the dimension a channel takes.

        Returns:
            The extent's number; equal extents share one.
        """
        key = (constant, tuple(sorted((group, count) for group, count in multiples.items() if count)))
        return self._extents.setdefault(key, len(self._extents))

    def params(self, coefficient: int, extents: Iterable[int]) -> None:
        """Adds elements of parameters: a coefficient times the sizes of dimensions."""
        self._add(0, coefficient, extents)

    def macs(self, coefficient: int, extents: Iterable[int]) -> None:
        """Adds multiply-accumulates."""
        self._add(1, coefficient, extents)

    def bytes(self, coefficient: int, extents: Iterable[int]) -> None:
        """Adds bytes of parameters or buffers."""
        self._add(2, coefficient, extents)

    def value(self, coefficient: int, extents: Iterable[int]) -> int:
        """Registers the size of a value in bytes and returns its number."""
        self._values.append((coefficient, tuple(sorted(extents))))
        return len(self._values) - 1

    def live(self, points: Iterable[Iterable[int]]) -> None:
        """Says which values are alive together at each point of the program."""
        self._points.update(dict.fromkeys(tuple(sorted(set(point))) for point in points))

    def build(self) -> CostModel:
        """Compiles what was collected."""
        constants = np.array([constant for constant, _ in self._extents], dtype=np.int64)
        multiples = np.zeros((len(self._extents), self._groups), dtype=np.int64)
        for row, (_, pairs) in enumerate(self._extents):
            for group, count in pairs:
                multiples[row, group] = count
        filler = len(self._extents)
        sums = [_Terms.of([(c, e) for e, c in terms.items()], filler) for terms in self._sums]
        live = np.zeros((len(self._points), len(self._values)), dtype=np.int64)
        for row, point in enumerate(self._points):
            live[row, list(point)] = 1
        return CostModel(constants, multiples, sums, _Terms.of(self._values, filler), live)

    def _add(self, kind: int, coefficient: int, extents: Iterable[int]) -> None:
        # Terms over the same extents are added up here, once, instead of in every evaluation.
        key = tuple(sorted(extents))
        terms = self._sums[kind]
        terms[key] = terms.get(key, 0) + coefficient
