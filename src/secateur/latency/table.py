"""Predict the time of a network from the widths of its channel groups, by a table of measured operators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from secateur.formats import table
from secateur.graph.groups import BoolArray, FloatArray, IntArray
from secateur.latency.piecewise_linear import (
    OperatorTime,
    bilinear,
    grid_position,
    is_uneven,
)

_NEIGHBOURHOOD = 32  # channels to either side over which the time per channel is averaged
_CHEAP = 0.5  # share of that time below which additional channels count as free


class LatencyModel(Protocol):
    """Predict times for a plan: a table, or any other object with this method."""

    def milliseconds(self, widths: IntArray) -> FloatArray:
        """Predict the time of a forward pass.

        Args:
            widths: channels of each group, shape ``(..., groups)``. Where residual branches are absent, 1
                for each branch of the network that is present and 0 for each other one follow, shape
                ``(..., groups + branches)``.

        Returns:
            Milliseconds, shape ``(...)``.
        """


@dataclass(frozen=True)
class Calibration:
    """Convert times of operators to the time of a network.

    Within a network an operator takes longer than alone: the memory of its result is not in the caches. Where
    a size is not a whole number of vectors, the difference is larger, so such calls have another factor.

    Attributes:
        overhead: milliseconds that belong to no operator.
        per_call: milliseconds that each call of an operator takes longer than alone; negative where it takes
            less.
        factors: by kind of operator, the factor of its times; 1 for a kind that is missing.
        uneven: by kind, the same for calls in which a size is not a whole number of vectors; as ``factors``
            for a kind that is missing.
        runs: for several widths, the predicted and the measured time of the network, milliseconds, ascending.

    >>> found = Calibration(overhead=0.5, factors={"relu": 1.2, "add": 1.1}, uneven={"relu": 1.5})
    >>> found.factor("relu"), found.factor("relu", uneven=True), found.factor("add", uneven=True)
    (1.2, 1.5, 1.1)
    """

    overhead: float = 0.0
    per_call: float = 0.0
    factors: Mapping[str, float] = field(default_factory=dict)
    uneven: Mapping[str, float] = field(default_factory=dict)
    runs: tuple[tuple[float, float], ...] = ()

    def factor(self, kind: str, uneven: bool = False) -> float:
        """Return the factor of a kind of operator, for whole vectors or for other sizes."""
        factor = self.factors.get(kind, 1.0)
        return self.uneven.get(kind, factor) if uneven else factor


@dataclass(frozen=True, eq=False)
class TableEntry:
    """The time of one operator, and the places of the network where it runs.

    Attributes:
        name: such as ``aten.conv2d.default``.
        kind: operators of one kind share a calibration factor.
        modules: paths of the modules that run it, one per place.
        time: its time as a function of the sizes of its axes.
        constants: at each place, the part of the size of each axis that belongs to no group, shape
            ``(places, axes)``.
        slots: at each place, how often each group's channels count, shape ``(places, axes, groups)``.
        branches: at each place, whether each residual branch contains it, shape ``(places, branches)``; no
            branches if not given.
    """

    name: str
    kind: str
    modules: tuple[str, ...]
    time: OperatorTime
    constants: IntArray = field(repr=False)
    slots: IntArray = field(repr=False)
    branches: BoolArray | None = field(default=None, repr=False)

    @property
    def inside(self) -> BoolArray:
        """Return at each place whether each residual branch contains it, shape ``(places, branches)``."""
        return np.zeros((len(self.modules), 0), dtype=np.bool_) if self.branches is None else self.branches

    def milliseconds(self, widths: IntArray) -> FloatArray:
        """Predict the time at each place, shape ``(..., places)``, for widths ``(..., groups)``."""
        return self.time.at(self._sizes(widths))

    def uneven(self, widths: IntArray) -> BoolArray:
        """Return at each place whether a size is not a whole number of vectors, shape ``(..., places)``."""
        return np.asarray(is_uneven(self._sizes(widths)).any(-1))

    def _sizes(self, widths: IntArray) -> IntArray:
        return np.asarray(np.einsum("...g,pag->...pa", widths, self.slots) + self.constants)


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """The time of a network on one device, for any widths of its groups.

    Made by :func:`secateur.latency.latency_table`. It is the sum of the times of all operators, each
    multiplied by a calibration factor, of a time for each call, and of an overhead.

    Attributes:
        entries: operators with their times.
        calibration: converts their times to that of the network.
        batch: examples in the inputs.
        conditions: device, threads, versions, memory layout.
        runtime: name of the runtime that ran the whole network.

    Example:
        Two milliseconds for 8 channels, and half a millisecond of overhead:

        >>> from secateur.latency.piecewise_linear import OperatorTime, TimeCurve
        >>> time = OperatorTime(2.0, (TimeCurve((4, 8), (1.0, 2.0)),))
        >>> slots, constants = np.ones((1, 1, 1), dtype=int), np.zeros((1, 1), dtype=int)
        >>> entry = TableEntry("aten.relu.default", "relu", ("act",), time, constants, slots)
        >>> table = LatencyTable((entry,), Calibration(overhead=0.5), 1, "a device")
        >>> table.milliseconds(np.array([[8], [4]])).tolist()
        [2.5, 1.5]
    """

    entries: tuple[TableEntry, ...] = field(repr=False)
    calibration: Calibration
    batch: int
    conditions: str
    runtime: str = "eager"

    def milliseconds(self, widths: IntArray) -> FloatArray:
        """Predict the time of a forward pass.

        Args:
            widths: channels of each group, shape ``(..., groups)``; or these, then 1 for each residual branch
                of the network that is present and 0 for each other one, shape ``(..., groups + branches)``.
                What only an absent branch computes takes no time.

        Returns:
            Milliseconds, shape ``(...)``.
        """
        array = np.asarray(widths, dtype=np.int64)
        rows = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
        return self._predictor.milliseconds(rows).reshape(array.shape[:-1]) + self.calibration.overhead

    @cached_property
    def _predictor(self) -> _Predictor:
        return _predictor(self.entries, self.calibration)

    def __str__(self) -> str:
        """List the kinds of operators with their share of the time, the slowest first."""
        kinds: dict[str, list[float]] = {}
        for entry in self.entries:
            sizes = np.array([curve.sizes[-1] for curve in entry.time.curves], dtype=np.int64)
            each = entry.time.full * self.calibration.factor(entry.kind, bool(is_uneven(sizes).any()))
            kinds.setdefault(entry.kind, []).append((each + self.calibration.per_call) * len(entry.modules))
        kinds["overhead"] = [self.calibration.overhead]
        total = sum(map(sum, kinds.values())) or 1.0
        ordered = sorted(kinds.items(), key=lambda item: -sum(item[1]))
        rows = [(name, f"{sum(ms):.3g}", f"{sum(ms) / total:.1%}") for name, ms in ordered]
        lines = [f"batch {self.batch}, {self.conditions}, {self.runtime}"]
        lines += table([("operator", "ms", "share"), *rows])
        for predicted, measured in reversed(self.calibration.runs):
            lines.append(f"network {predicted:.4g} ms predicted, {measured:.4g} ms measured")
        return "\n".join(lines)


_Records = np.ndarray[tuple[int], np.dtype[np.void]]

_AXIS = np.dtype([("constant", np.int64), ("largest", np.int64), ("start", np.int64)])
"""An axis of an operator at one place: size that belongs to no group, largest size, start of its curve."""

_PAIR = np.dtype([("axis", np.int64), ("place", np.int64), ("start", np.int64), ("columns", np.int64)])
"""A place with two axes: its first axis (the second follows), the place, start and columns of corrections."""

_SIZE = np.dtype(
    [("log", np.float64), ("index", np.int64), ("fraction", np.float64), ("uneven", np.bool_)],
)
"""A size on a curve: logarithm of its time over that of the full size, position on the coarse grid, and
whether it is not a whole number of vectors."""


@dataclass(frozen=True, eq=False)
class _Predictor:
    """The operators of all places in flat arrays, so that thousands of widths are predicted at once.

    The curves are tabulated: ``logs``, ``index`` and ``fraction`` have an entry for each size of each curve.
    They are separate arrays, because looking up records takes one and a half to five times as long.

    Attributes:
        fixed: milliseconds of operators without axes, with the time per call, shape ``(fixed places,)``.
        fixed_inside: whether each residual branch contains them, shape ``(fixed places, branches)``.
        inside: whether each residual branch contains the other places, shape ``(places, branches)``.
        full: milliseconds at full size, times the factor for whole vectors, shape ``(places,)``.
        per_call: milliseconds added for each of the other places.
        penalties: logarithm of the factor for other sizes over that for whole vectors, shape ``(places,)``.
        first_axes: index of the first axis of each place, shape ``(places,)``.
        axes: records of ``_AXIS``.
        slots: how often each group's channels count in each axis, shape ``(groups, axes)``; as floating-point
            numbers, since products of integers would not go through BLAS.
        pairs: records of ``_PAIR``.
        logs: logarithm of the time over that of the full size, at each size.
        index: grid index of each size.
        fraction: distance from there to the next grid size, as a share.
        uneven: whether each size is not a whole number of vectors.
        corrections: the correction tables, one after another.
        groups: number of channel groups.
    """

    fixed: FloatArray
    fixed_inside: BoolArray
    inside: BoolArray
    full: FloatArray
    per_call: float
    penalties: FloatArray
    first_axes: IntArray
    axes: _Records
    slots: FloatArray
    pairs: _Records
    logs: FloatArray
    index: IntArray
    fraction: FloatArray
    uneven: BoolArray
    corrections: FloatArray
    groups: int

    def milliseconds(self, widths: IntArray) -> FloatArray:
        """Predict the time of all operators for widths ``(n, groups [+ branches])``, shape ``(n,)``."""
        if widths.shape[1] > self.groups:
            widths, branches = np.split(widths, [self.groups], axis=1)
            there, fixed = (is_present(branches, inside) for inside in (self.inside, self.fixed_inside))
            times = (self._times(widths) * there) @ self.full + there.sum(1) * self.per_call
            return np.asarray(times + fixed @ self.fixed)
        calls = len(self.full) * self.per_call
        return np.asarray(self._times(widths) @ self.full + calls + self.fixed.sum())

    def _times(self, widths: IntArray) -> FloatArray:
        """Predict the time at each place as a share of that at full size, shape ``(n, places)``."""
        if not len(self.full):
            return np.zeros((len(widths), 0))
        sizes = (widths.astype(np.float64) @ self.slots).astype(np.int64) + self.axes["constant"]
        at = np.clip(sizes, 0, self.axes["largest"]) + self.axes["start"]
        logs = np.add.reduceat(self.logs[at], self.first_axes, axis=1)
        logs += np.logical_or.reduceat(self.uneven[at], self.first_axes, axis=1) * self.penalties
        if len(self.pairs):
            pair = self.pairs
            first, second = at[:, pair["axis"]], at[:, pair["axis"] + 1]
            row, column = ((self.index[place], self.fraction[place]) for place in (first, second))
            logs[:, pair["place"]] += bilinear(self.corrections, pair["columns"], row, column, pair["start"])
        return np.asarray(np.exp(logs))


def is_present(branches: IntArray, inside: BoolArray) -> BoolArray:
    """Return whether places of a network are there, shape ``(..., places)``.

    Args:
        branches: 1 for each residual branch that is there and 0 for the others, shape ``(..., branches)``.
        inside: whether each branch contains each place, shape ``(places, branches)``.

    >>> is_present(np.array([1, 0]), np.array([[True, False], [True, True]])).tolist()
    [True, False]
    """
    absent = (np.asarray(branches) == 0).astype(np.float64)
    return np.asarray(absent @ inside.T.astype(np.float64) == 0)


def _predictor(entries: Sequence[TableEntry], calibration: Calibration) -> _Predictor:
    """Tabulate the calibrated entries."""
    fixed, full, penalties = list[float](), list[float](), list[float]()
    fixed_inside, inside = [], []
    axes, pairs = list[tuple[int, ...]](), list[tuple[int, ...]]()
    first_axes, slots, corrections = [], [], [0.0]
    curves = [np.zeros(0, dtype=_SIZE)]
    for entry in entries:
        factor, uneven = calibration.factor(entry.kind), calibration.factor(entry.kind, uneven=True)
        if not entry.time.curves:
            fixed += [entry.time.full * factor + calibration.per_call] * len(entry.modules)
            fixed_inside.append(entry.inside)
            continue
        starts = []
        for axis, curve in enumerate(entry.time.curves):
            sizes = np.arange(curve.sizes[-1] + 1)
            tabulated = np.zeros(len(sizes), dtype=_SIZE)
            tabulated["log"] = np.log(curve.at(sizes) / entry.time.full)
            tabulated["uneven"] = is_uneven(sizes)
            if entry.time.grid:
                grid = np.array(entry.time.grid[axis])
                tabulated["index"], tabulated["fraction"] = grid_position(grid, sizes.clip(1))
            starts.append(sum(map(len, curves)))
            curves.append(tabulated)
        inside.append(entry.inside)
        table = [value for row in entry.time.corrections for value in row]
        for place in range(len(entry.modules)):
            if table:
                pairs.append((len(axes), len(full), len(corrections), len(entry.time.grid[1])))
            first_axes.append(len(axes))
            full.append(entry.time.full * factor)
            penalties.append(math.log(uneven / factor))
            for axis, curve in enumerate(entry.time.curves):
                axes.append((entry.constants[place, axis], curve.sizes[-1], starts[axis]))
                slots.append(entry.slots[place, axis])
        corrections += table
    tabulated = np.concatenate(curves)
    none = np.zeros((0, entries[0].inside.shape[1] if entries else 0), dtype=np.bool_)
    return _Predictor(
        fixed=np.array(fixed),
        fixed_inside=np.concatenate([none, *fixed_inside]),
        inside=np.concatenate([none, *inside]),
        full=np.array(full),
        per_call=calibration.per_call,
        penalties=np.array(penalties),
        first_axes=np.array(first_axes, dtype=np.int64),
        axes=np.array(axes, dtype=_AXIS),
        slots=np.array(slots, dtype=np.float64).T,
        pairs=np.array(pairs, dtype=_PAIR),
        logs=tabulated["log"].copy(),
        index=tabulated["index"].copy(),
        fraction=tabulated["fraction"].copy(),
        uneven=tabulated["uneven"].copy(),
        corrections=np.array(corrections),
        groups=entries[0].slots.shape[-1] if entries else 0,
    )


def efficient_widths(latency: LatencyModel, widths: IntArray) -> tuple[IntArray, ...]:
    """Find, for each group, the widths beyond which more channels cost time.

    Devices work in steps: for some groups 60 channels take as long as 64, and for some 65 as long as 96. A
    width is efficient if every wider one nearby takes longer, by at least half of the average time per
    channel in the neighbourhood. Each group is examined alone, with the others at full width.

    Args:
        latency: predicts milliseconds.
        widths: full width of each group, shape ``(groups,)``.

    Returns:
        For each group its efficient widths, ascending; the full width is always one of them.

    Example:
        Four channels take as long as three, eight as long as five:

        >>> class Stepped:
        ...     def milliseconds(self, widths):
        ...         return np.ceil(widths[..., 0] / 4) + 0.001 * widths[..., 0]
        >>> efficient_widths(Stepped(), np.array([12]))
        (array([ 4,  8, 12]),)
    """
    found = []
    for group, full in enumerate(widths.tolist()):
        tried = np.repeat(widths[None], full, axis=0)
        tried[:, group] = np.arange(1, full + 1)
        found.append(1 + np.flatnonzero(_is_efficient(latency.milliseconds(tried))))
    return tuple(found)


def _is_efficient(times: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return whether each width is efficient, from the times of the widths 1, 2, 3 and so on."""
    count = len(times)
    places = np.arange(count)
    left, right = np.maximum(places - _NEIGHBOURHOOD, 0), np.minimum(places + _NEIGHBOURHOOD, count - 1)
    per_channel = np.maximum((times[right] - times[left]) / np.maximum(right - left, 1), 0.0)
    efficient = np.ones(count, dtype=np.bool_)
    for more in range(1, min(_NEIGHBOURHOOD, count - 1) + 1):
        is_free = times[more:] - times[:-more] < _CHEAP * per_channel[:-more] * more
        efficient[:-more] &= ~is_free
    return efficient
