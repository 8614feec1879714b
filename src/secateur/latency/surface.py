"""Surfaces: the time of an operator between the sizes at which it was measured.

Along each axis the operator is measured with all other axes as they are, densely enough to see
steps; where two axes shrink at once, the product of the two curves is corrected by what a coarse grid of
sizes showed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.graph.groups import IntArray
from secateur.latency.operators import Axis

FloatArray = npt.NDArray[np.float64]
Measure = Callable[[Sequence[int]], float]
"""Milliseconds of an operator with axes of some sizes."""

_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)  # where a curve is measured in any case
_KNOTS = (0.5, 0.25, 0.1)  # of the coarse grid, besides the full size
_VECTOR = 8  # numbers that most devices work on at once, and with them most steps
_TOLERANCE = 0.03  # share of an operator's time by which a straight line may be wrong
_LITTLE = 0.004  # the same, as a share of the time of the full size
_MOST = 40  # sizes at which a curve is measured


@dataclass(frozen=True)
class Curve:
    """Time along one axis.

    Attributes:
        sizes: at which it was measured, ascending.
        milliseconds: at each.
    """

    sizes: tuple[int, ...]
    milliseconds: tuple[float, ...]

    def at(self, sizes: IntArray) -> FloatArray:
        """Milliseconds at any sizes, straight lines between measured ones.

        >>> Curve((8, 16), (1.0, 2.0)).at(np.array([4, 12, 16])).tolist()
        [1.0, 1.5, 2.0]
        """
        return np.asarray(np.interp(sizes, self.sizes, self.milliseconds), dtype=np.float64)


@dataclass(frozen=True)
class Surface:
    """Time of an operator as a function of the sizes of its axes.

    Attributes:
        full: milliseconds with all axes as they are.
        curves: one per axis.
        knots: for two axes, the coarse sizes of each, ascending, the full size last.
        factors: by how much the product of the curves was off where both axes shrink, as a natural
            logarithm, a row for each knot of the first axis.
    """

    full: float
    curves: tuple[Curve, ...] = ()
    knots: tuple[tuple[int, ...], ...] = ()
    factors: tuple[tuple[float, ...], ...] = ()

    def at(self, sizes: IntArray) -> FloatArray:
        """Milliseconds.

        Args:
            sizes: shape ``(..., axes)``.

        Returns:
            Shape ``(...)``.
        """
        product = np.full(sizes.shape[:-1], self.full)
        for axis, curve in enumerate(self.curves):
            product *= curve.at(sizes[..., axis]) / self.full
        if not self.knots:
            return product
        cells = [cell(np.array(knots), sizes[..., axis]) for axis, knots in enumerate(self.knots)]
        return np.asarray(product * np.exp(bilinear(np.array(self.factors), cells)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "full": self.full,
            "curves": [[list(curve.sizes), list(curve.milliseconds)] for curve in self.curves],
            "knots": [list(knots) for knots in self.knots],
            "factors": [list(row) for row in self.factors],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Surface:
        """The inverse of :meth:`to_dict`."""
        return cls(
            float(data["full"]),
            tuple(Curve(tuple(map(int, s)), tuple(map(float, ms))) for s, ms in data["curves"]),
            tuple(tuple(map(int, knots)) for knots in data["knots"]),
            tuple(tuple(map(float, row)) for row in data["factors"]),
        )


Cell = tuple[IntArray, FloatArray]
"""The knot below a size, and how far the size lies on the way to the next, on a logarithmic scale."""


def cell(knots: IntArray, sizes: IntArray) -> Cell:
    """Where sizes lie between knots; outside of them, at the nearest.

    >>> below, way = cell(np.array([4, 16, 64]), np.array([4, 8, 100]))
    >>> below.tolist(), way.round(3).tolist()
    ([0, 0, 1], [0.0, 0.5, 1.0])
    """
    if len(knots) == 1:
        return np.zeros(np.shape(sizes), dtype=np.int64), np.zeros(np.shape(sizes))
    inside = np.clip(sizes, knots[0], knots[-1])
    below = np.clip(np.searchsorted(knots, inside, side="right") - 1, 0, len(knots) - 2)
    logs = np.log(knots)
    way = (np.log(inside) - logs[below]) / (logs[below + 1] - logs[below])
    return np.asarray(below, dtype=np.int64), np.asarray(way, dtype=np.float64)


def bilinear(table: FloatArray, cells: Sequence[Cell]) -> FloatArray:
    """A table between its entries.

    Args:
        table: shape ``(rows, columns)``.
        cells: where to look, by rows and by columns.
    """
    (row, down), (column, right) = cells
    below, beside = np.minimum(row + 1, len(table) - 1), np.minimum(column + 1, table.shape[1] - 1)
    upper = table[row, column] * (1 - right) + table[row, beside] * right
    lower = table[below, column] * (1 - right) + table[below, beside] * right
    return np.asarray(upper * (1 - down) + lower * down)


def measure_surface(axes: Sequence[Axis], measure: Measure, negligible: float = 0.0) -> Surface:
    """Measures an operator at enough sizes.

    Args:
        axes: the sizes that it may have.
        measure: the operator.
        negligible: milliseconds that are not worth a closer look.
    """
    whole = tuple(axis.high for axis in axes)
    full = measure(whole)

    def along(number: int) -> Callable[[int], float]:
        return lambda size: measure((*whole[:number], size, *whole[number + 1 :]))

    curves = tuple(measure_curve(axis, along(n), negligible) for n, axis in enumerate(axes))
    plain = Surface(full, curves)
    if len(axes) != 2:
        return plain
    knots = [_sizes(axis, _KNOTS) for axis in axes]
    factors = [
        [
            0.0
            if first == whole[0] or second == whole[1]
            else float(np.log(measure((first, second)) / plain.at(np.array([first, second]))))
            for second in knots[1]
        ]
        for first in knots[0]
    ]
    return Surface(full, curves, tuple(map(tuple, knots)), tuple(map(tuple, factors)))


def measure_curve(axis: Axis, measure: Callable[[int], float], negligible: float = 0.0) -> Curve:
    """Measures an axis, closer where straight lines between measured sizes prove wrong.

    Args:
        axis: the sizes that there are.
        measure: milliseconds at a size.
        negligible: error in milliseconds that is not worth a closer look.
    """
    known = {size: measure(size) for size in (axis.low, *_sizes(axis, _SHARES))}
    sizes = sorted(known)
    negligible = max(negligible, _LITTLE * known[axis.high])
    open_ = list(itertools.pairwise(sizes))
    while open_ and len(known) < _MOST:
        # Where most time may be hidden, first.
        low, high = max(open_, key=lambda pair: abs(known[pair[1]] - known[pair[0]]))
        open_.remove((low, high))
        probes = _probes(axis, low, high)
        wrong = 0.0
        for size in probes:
            known[size] = measure(size)
            line = float(np.interp(size, (low, high), (known[low], known[high])))
            allowed = max(_TOLERANCE * known[size], negligible)
            wrong = max(wrong, abs(known[size] - line) / allowed if allowed else 0.0)
        if wrong > 1:
            ends = [low, *probes, high]
            open_ += list(itertools.pairwise(ends))
    ordered = sorted(known)
    return Curve(tuple(ordered), tuple(known[size] for size in ordered))


def _sizes(axis: Axis, shares: Sequence[float]) -> list[int]:
    """Whole numbers of vectors at about some shares of an axis, and its full size; ascending."""
    return sorted({axis.nearest(_aligned(axis.high * share)) for share in shares} | {axis.high})


def _aligned(size: float) -> int:
    """The nearest whole number of vectors, or the size itself where it is small."""
    return round(size / _VECTOR) * _VECTOR if size > 2 * _VECTOR else round(size)


def _probes(axis: Axis, low: int, high: int) -> list[int]:
    """Sizes to look at between two: one just beyond a whole number of vectors, and one at such a number.

    A step shows at one of them at least, whichever way it goes.
    """
    third = (high - low) / 3
    wanted = (low + third, high - third)
    if third > _VECTOR / 2:
        wanted = (_aligned(wanted[0]) + 1, _aligned(wanted[1]))
    return sorted({size for size in map(axis.nearest, wanted) if low < size < high})
