"""Measure the time of an operator at a few sizes of its axes, and interpolate linearly between them.

Along each axis the operator is measured with the other axis at its present size, densely enough to find
steps. Sizes that are whole vectors are interpolated separately, since devices run them faster than the sizes
beside them. Where two axes are narrower at once, the product of the two curves is multiplied by a correction
that was measured on a coarse grid of sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.graph.groups import BoolArray, FloatArray, IntArray
from secateur.latency.operators import Axis

Measure = Callable[[Sequence[int]], float]
"""Measures the milliseconds of an operator with axes of given sizes."""

_SHARES = (0.5, 0.25, 0.1)  # shares of an axis at which a curve is always measured
_GRID = (0.5, 0.25, 0.1)  # shares of an axis in the coarse grid, besides the full size
_VECTOR = 8  # numbers that most devices process at once, so that most steps are multiples of it
_TOLERANCE = 0.03  # error of a straight line that is accepted, as a share of the operator's time
_LITTLE = 0.004  # the same, as a share of the time of the full size
_DISTURBED = 1.04  # a size that takes this many times as long as a larger one is measured again
_MOST = 20  # most sizes to measure among whole vectors, and as many among the others


def is_uneven(sizes: IntArray) -> BoolArray:
    """Return whether sizes are not whole numbers of vectors.

    >>> is_uneven(np.array([8, 12, 16])).tolist()
    [False, True, False]
    """
    return np.asarray(np.remainder(sizes, _VECTOR) != 0)


def whole_vectors(sizes: FloatArray) -> IntArray:
    """Round sizes to whole numbers of vectors, or to integers where they are small.

    >>> whole_vectors(np.array([13.4, 29.0])).tolist()
    [13, 32]
    """
    rounded = np.where(sizes > 2 * _VECTOR, np.round(sizes / _VECTOR) * _VECTOR, np.round(sizes))
    return np.asarray(rounded, dtype=np.int64)


@dataclass(frozen=True)
class TimeCurve:
    """Time along one axis.

    Attributes:
        sizes: at which it was measured, ascending.
        milliseconds: at each.
    """

    sizes: tuple[int, ...]
    milliseconds: tuple[float, ...]

    def at(self, sizes: IntArray) -> FloatArray:
        """Interpolate linearly between measured sizes: whole vectors between whole vectors, others likewise.

        >>> TimeCurve((8, 16), (1.0, 2.0)).at(np.array([4, 12, 16])).tolist()
        [1.0, 1.5, 2.0]
        >>> TimeCurve((7, 8, 9, 16), (2.0, 1.0, 4.0, 3.0)).at(np.array([8, 9, 16])).tolist()
        [1.0, 4.0, 3.0]
        """
        return np.where(is_uneven(sizes), self._interpolate(sizes, False), self._interpolate(sizes, True))

    def _interpolate(self, sizes: IntArray, whole: bool) -> FloatArray:
        """Interpolate between the measured whole vectors, or between the other measured sizes."""
        known = zip(self.sizes, self.milliseconds, strict=True)
        points = [point for point in known if (point[0] % _VECTOR == 0) is whole]
        places, times = zip(*points, strict=True) if points else (self.sizes, self.milliseconds)
        return np.asarray(np.interp(sizes, places, times), dtype=np.float64)


@dataclass(frozen=True)
class OperatorTime:
    """Time of an operator as a function of the sizes of its axes.

    Attributes:
        full: milliseconds with all axes at their present size.
        curves: one per axis.
        grid: for two axes, the coarse sizes of each, ascending, the present size last.
        corrections: natural logarithm of the measured time over the product of the curves, at each point of
            the grid; one row per size of the first axis.
    """

    full: float
    curves: tuple[TimeCurve, ...] = ()
    grid: tuple[tuple[int, ...], ...] = ()
    corrections: tuple[tuple[float, ...], ...] = ()

    def at(self, sizes: IntArray) -> FloatArray:
        """Predict the milliseconds at any sizes.

        Args:
            sizes: shape ``(..., axes)``.

        Returns:
            Shape ``(...)``.
        """
        product = np.full(sizes.shape[:-1], self.full)
        for axis, curve in enumerate(self.curves):
            product *= curve.at(sizes[..., axis]) / self.full
        if not self.grid:
            return product
        first, second = (
            grid_position(np.array(grid), sizes[..., axis]) for axis, grid in enumerate(self.grid)
        )
        table = np.array(self.corrections)
        return np.asarray(product * np.exp(bilinear(table.ravel(), table.shape[1], first, second)))


GridPosition = tuple[IntArray, FloatArray]
"""Index of the grid size at or below a size, and the distance to the next, 0 to 1 on a logarithmic scale."""


def grid_position(grid: IntArray, sizes: IntArray) -> GridPosition:
    """Locate sizes on a grid; sizes outside of it are moved to its nearest end.

    >>> index, fraction = grid_position(np.array([4, 16, 64]), np.array([4, 8, 100]))
    >>> index.tolist(), fraction.round(3).tolist()
    ([0, 0, 1], [0.0, 0.5, 1.0])
    """
    if len(grid) == 1:
        return np.zeros(np.shape(sizes), dtype=np.int64), np.zeros(np.shape(sizes))
    inside = np.clip(sizes, grid[0], grid[-1])
    index = np.clip(np.searchsorted(grid, inside, side="right") - 1, 0, len(grid) - 2)
    logs = np.log(grid)
    fraction = (np.log(inside) - logs[index]) / (logs[index + 1] - logs[index])
    return np.asarray(index, dtype=np.int64), np.asarray(fraction, dtype=np.float64)


def bilinear(
    table: FloatArray,
    columns: IntArray | int,
    row: GridPosition,
    column: GridPosition,
    start: IntArray | int = 0,
) -> FloatArray:
    """Interpolate in a table bilinearly.

    Args:
        table: entries, row after row; several tables may follow each other.
        columns: number of columns of the table.
        row: position among the rows.
        column: position among the columns.
        start: index of the first entry of the table.

    Returns:
        The values, in the common shape of the positions.
    """
    (above, down), (left, right) = row, column
    here = start + above * columns + left
    below = here + columns
    # Beyond the last row or column the weight is zero, so it does not matter which entry is read there.
    upper = table[here] * (1 - right) + table.take(here + 1, mode="clip") * right
    lower = table.take(below, mode="clip") * (1 - right) + table.take(below + 1, mode="clip") * right
    return np.asarray(upper * (1 - down) + lower * down)


def measure_operator_time(
    axes: Sequence[Axis], measure: Measure, negligible: float = 0.0, again: Measure | None = None
) -> OperatorTime:
    """Measure an operator at as many sizes as piecewise linear interpolation needs.

    Args:
        axes: the sizes that it may have.
        measure: measures the operator.
        negligible: error in milliseconds that needs no more measurements.
        again: measures the same a second time, where a first time may be disturbed; without, nothing is
            measured twice.
    """
    present = tuple(axis.high for axis in axes)

    def least_of_two(sizes: Sequence[int]) -> float:
        return measure(sizes) if again is None else min(measure(sizes), again(sizes))

    def along(axis: int, function: Measure) -> Callable[[int], float]:
        return lambda size: function((*present[:axis], size, *present[axis + 1 :]))

    full = least_of_two(present)
    curves = tuple(
        measure_curve(axis, along(n, measure), negligible, None if again is None else along(n, again))
        for n, axis in enumerate(axes)
    )
    product = OperatorTime(full, curves)
    if len(axes) != 2:
        return product
    grid = [_grid_sizes(axis) for axis in axes]
    corrections = [
        [
            0.0
            if first == present[0] or second == present[1]
            else float(np.log(least_of_two((first, second)) / product.at(np.array([first, second]))))
            for second in grid[1]
        ]
        for first in grid[0]
    ]
    return OperatorTime(full, curves, tuple(map(tuple, grid)), tuple(map(tuple, corrections)))


def measure_curve(
    axis: Axis,
    measure: Callable[[int], float],
    negligible: float = 0.0,
    again: Callable[[int], float] | None = None,
) -> TimeCurve:
    """Measure along an axis, more densely where straight lines between measured sizes are wrong.

    Args:
        axis: the possible sizes.
        measure: returns the milliseconds at a size.
        negligible: error in milliseconds that needs no more measurements.
        again: measures the same a second time, where a first time may be disturbed; without, nothing is
            measured twice.
    """
    samples = _Samples(measure, again)
    samples.repeat([axis.high])
    negligible = max(negligible, _LITTLE * samples.at(axis.high))
    possible = np.arange(axis.low, axis.high + 1, axis.step)
    for whole in (True, False):
        sizes = possible[(possible % _VECTOR == 0) == whole]
        if len(sizes):
            _refine(sizes, samples, negligible)
    samples.repeat_slow()
    ordered = sorted(samples.known)
    return TimeCurve(tuple(ordered), tuple(samples.at(size) for size in ordered))


class _Samples:
    """Measured sizes. Disturbances only make a measurement longer, so of two the smaller counts."""

    def __init__(self, measure: Callable[[int], float], again: Callable[[int], float] | None) -> None:
        self.known: dict[int, float] = {}
        self._repeated: set[int] = set()
        self._measure = measure
        self._again = again

    def at(self, size: int) -> float:
        """Return the milliseconds at a size; measure it if it is new."""
        if size not in self.known:
            self.known[size] = self._measure(size)
        return self.known[size]

    def repeat(self, sizes: Sequence[int]) -> None:
        """Measure sizes a second time."""
        for size in sizes:
            if self._again is not None and size not in self._repeated:
                self._repeated.add(size)
                self.known[size] = min(self.at(size), self._again(size))

    def repeat_slow(self) -> None:
        """Measure sizes that took longer than a larger one a second time."""
        least = np.inf
        for size in sorted(self.known, reverse=True):
            if self.known[size] > least * _DISTURBED:
                self.repeat([size])
            least = min(least, self.known[size])


def _refine(sizes: IntArray, samples: _Samples, negligible: float) -> None:
    """Measure some of the sizes, until straight lines between them fit or the limit is reached."""
    ends = sorted({_nearest(sizes, share * sizes[-1]) for share in (0, *_SHARES, 1)})
    for size in ends:
        samples.at(size)
    intervals = list(itertools.pairwise(ends))
    count = len(ends)
    while intervals and count < _MOST:
        # The interval over which the time changes most comes first.
        low, high = max(intervals, key=lambda pair: abs(samples.at(pair[1]) - samples.at(pair[0])))
        intervals.remove((low, high))
        probes = _probes(sizes, low, high)
        if not probes or max(samples.at(low), samples.at(high)) <= negligible:
            continue
        count += len(probes)
        if _is_nonlinear(samples, low, probes, high, negligible):
            samples.repeat([low, *probes, high])
            if _is_nonlinear(samples, low, probes, high, negligible):
                intervals += list(itertools.pairwise([low, *probes, high]))


def _is_nonlinear(samples: _Samples, low: int, probes: Sequence[int], high: int, negligible: float) -> bool:
    """Return whether a straight line between two sizes is wrong at the probes between them."""
    lines = np.interp(probes, (low, high), (samples.at(low), samples.at(high)))
    return any(
        abs(samples.at(size) - line) > max(_TOLERANCE * samples.at(size), negligible)
        for size, line in zip(probes, lines.tolist(), strict=True)
    )


def _probes(sizes: IntArray, low: int, high: int) -> list[int]:
    """Choose two sizes between two others: one just above a whole vector, and one just below.

    At least one of them shows a step, whether the time rises or falls there.
    """
    third = (high - low) / 3
    wanted = (low + third, high - third)
    if third > _VECTOR / 2:
        first, second = whole_vectors(np.array(wanted)).tolist()
        wanted = (first + 1, second - 1)
    return sorted({size for size in (_nearest(sizes, near) for near in wanted) if low < size < high})


def _nearest(sizes: IntArray, near: float) -> int:
    return int(sizes[np.argmin(np.abs(sizes - near))])


def _grid_sizes(axis: Axis) -> list[int]:
    """Return whole vectors at about the shares of the coarse grid, and the full size; ascending."""
    return sorted(
        {axis.nearest(size) for size in whole_vectors(axis.high * np.array(_GRID)).tolist()} | {axis.high}
    )
