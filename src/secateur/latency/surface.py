"""Surfaces: the time of an operator between the sizes at which it was measured.

Along each axis the operator is measured with all other axes as they are, densely enough to see
steps. Sizes of whole vectors have a curve of their own, since devices run them faster than their
neighbours. Where two axes shrink at once, the product of the two curves is corrected by what a coarse grid
of sizes showed.
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

_SHARES = (0.5, 0.25, 0.1)  # where a curve is measured in any case
_KNOTS = (0.5, 0.25, 0.1)  # of the coarse grid, besides the full size
_VECTOR = 8  # numbers that most devices work on at once, and with them most steps
_TOLERANCE = 0.03  # share of an operator's time by which a straight line may be wrong
_LITTLE = 0.004  # the same, as a share of the time of the full size
_DISTURBED = 1.04  # times as long as a larger size: to be measured once more
_MOST = 20  # sizes at which whole vectors are measured, and as many for the others


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
        """Milliseconds at any sizes: straight lines between measured ones of the same kind.

        >>> Curve((8, 16), (1.0, 2.0)).at(np.array([4, 12, 16])).tolist()
        [1.0, 1.5, 2.0]
        >>> Curve((7, 8, 9, 16), (2.0, 1.0, 4.0, 3.0)).at(np.array([8, 9, 16])).tolist()
        [1.0, 4.0, 3.0]
        """
        whole = np.remainder(sizes, _VECTOR) == 0
        return np.where(whole, self._along(sizes, True), self._along(sizes, False))

    def _along(self, sizes: IntArray, whole: bool) -> FloatArray:
        """Straight lines between the sizes that are whole vectors, or those that are none."""
        known = zip(self.sizes, self.milliseconds, strict=True)
        knots = [knot for knot in known if (knot[0] % _VECTOR == 0) is whole]
        places, times = zip(*knots, strict=True) if knots else (self.sizes, self.milliseconds)
        return np.asarray(np.interp(sizes, places, times), dtype=np.float64)


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


def measure_surface(
    axes: Sequence[Axis], measure: Measure, negligible: float = 0.0, again: Measure | None = None
) -> Surface:
    """Measures an operator at enough sizes.

    Args:
        axes: the sizes that it may have.
        measure: the operator.
        negligible: milliseconds that are not worth a closer look.
        again: measures the same once more, where a first time is in doubt; without, no time is.
    """
    whole = tuple(axis.high for axis in axes)

    def twice(sizes: Sequence[int]) -> float:
        return measure(sizes) if again is None else min(measure(sizes), again(sizes))

    def along(number: int, way: Measure) -> Callable[[int], float]:
        return lambda size: way((*whole[:number], size, *whole[number + 1 :]))

    full = twice(whole)
    curves = tuple(
        measure_curve(axis, along(n, measure), negligible, None if again is None else along(n, again))
        for n, axis in enumerate(axes)
    )
    plain = Surface(full, curves)
    if len(axes) != 2:
        return plain
    knots = [_sizes(axis, _KNOTS) for axis in axes]
    factors = [
        [
            0.0
            if first == whole[0] or second == whole[1]
            else float(np.log(twice((first, second)) / plain.at(np.array([first, second]))))
            for second in knots[1]
        ]
        for first in knots[0]
    ]
    return Surface(full, curves, tuple(map(tuple, knots)), tuple(map(tuple, factors)))


def measure_curve(
    axis: Axis,
    measure: Callable[[int], float],
    negligible: float = 0.0,
    again: Callable[[int], float] | None = None,
) -> Curve:
    """Measures an axis, closer where straight lines between measured sizes turn out wrong.

    Args:
        axis: the sizes that there are.
        measure: milliseconds at a size.
        negligible: error in milliseconds that is not worth a closer look.
        again: measures the same once more, where a first time is in doubt; without, no time is.
    """
    points = _Points(measure, again)
    points.confirm([axis.high])
    negligible = max(negligible, _LITTLE * points[axis.high])
    every = np.arange(axis.low, axis.high + 1, axis.step)
    for whole in (True, False):
        sizes = every[(every % _VECTOR == 0) == whole]
        if len(sizes):
            _look_between(sizes, points, negligible)
    points.confirm_slow()
    ordered = sorted(points.known)
    return Curve(tuple(ordered), tuple(points[size] for size in ordered))


class _Points:
    """Measured sizes. What disturbs a measurement makes it longer, so the least counts."""

    def __init__(self, measure: Callable[[int], float], again: Callable[[int], float] | None) -> None:
        self.known: dict[int, float] = {}
        self._confirmed: set[int] = set()
        self._measure = measure
        self._again = again

    def __getitem__(self, size: int) -> float:
        self.look_at(size)
        return self.known[size]

    def look_at(self, size: int) -> None:
        """Measures a size that is not known yet."""
        if size not in self.known:
            self.known[size] = self._measure(size)

    def confirm(self, sizes: Sequence[int]) -> None:
        """Measures sizes once more."""
        for size in sizes:
            if self._again is not None and size not in self._confirmed:
                self._confirmed.add(size)
                self.known[size] = min(self[size], self._again(size))

    def confirm_slow(self) -> None:
        """Measures sizes once more that took longer than a larger one."""
        least = np.inf
        for size in sorted(self.known, reverse=True):
            if self.known[size] > least * _DISTURBED:
                self.confirm([size])
            least = min(least, self.known[size])


def _look_between(sizes: IntArray, points: _Points, negligible: float) -> None:
    """Measures some of the sizes, enough of them for straight lines."""
    ends = sorted({_nearest(sizes, share * sizes[-1]) for share in (0, *_SHARES, 1)})
    for size in ends:
        points.look_at(size)
    open_ = list(itertools.pairwise(ends))
    count = len(ends)
    while open_ and count < _MOST:
        # Where most time may be hidden, first.
        low, high = max(open_, key=lambda pair: abs(points[pair[1]] - points[pair[0]]))
        open_.remove((low, high))
        probes = _probes(sizes, low, high)
        if not probes or max(points[low], points[high]) <= negligible:
            continue
        count += len(probes)
        if _bent(points, low, probes, high, negligible):
            points.confirm([low, *probes, high])
            if _bent(points, low, probes, high, negligible):
                open_ += list(itertools.pairwise([low, *probes, high]))


def _bent(points: _Points, low: int, probes: Sequence[int], high: int, negligible: float) -> bool:
    """Whether a straight line between two sizes is wrong at those between."""
    lines = np.interp(probes, (low, high), (points[low], points[high]))
    return any(
        abs(points[size] - line) > max(_TOLERANCE * points[size], negligible)
        for size, line in zip(probes, lines.tolist(), strict=True)
    )


def _probes(sizes: IntArray, low: int, high: int) -> list[int]:
    """Sizes to look at between two: one just beyond a whole vector, and one just below.

    A step shows at one of them at least, whichever way it goes.
    """
    third = (high - low) / 3
    wanted = (low + third, high - third)
    if third > _VECTOR / 2:
        wanted = (_aligned(wanted[0]) + 1, _aligned(wanted[1]) - 1)
    return sorted({size for size in (_nearest(sizes, near) for near in wanted) if low < size < high})


def _nearest(sizes: IntArray, near: float) -> int:
    return int(sizes[np.argmin(np.abs(sizes - near))])


def _sizes(axis: Axis, shares: Sequence[float]) -> list[int]:
    """Whole numbers of vectors at about some shares of an axis, and its full size; ascending."""
    return sorted({axis.nearest(_aligned(axis.high * share)) for share in shares} | {axis.high})


def _aligned(size: float) -> int:
    """The nearest whole number of vectors, or the size itself where it is small."""
    return round(size / _VECTOR) * _VECTOR if size > 2 * _VECTOR else round(size)
