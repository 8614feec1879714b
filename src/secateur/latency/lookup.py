"""Lookup: all terms of a table in a few arrays, so that thousands of widths are summed at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from secateur.graph.groups import IntArray
from secateur.latency.surface import FloatArray, Surface, cell
from secateur.latency.term import Term


@dataclass(frozen=True, eq=False)
class Lookup:
    """All terms in a few arrays, so that thousands of widths are looked up at once.

    A *place* is one axis of one operator at one place of the network. For every size that a place
    may have, the logarithm of its curve (as a share of the full time) stands ready in ``logs``.
    """

    fixed: float
    constants: IntArray  # (places,)
    slots: IntArray  # (places, groups)
    start: IntArray  # (places,): where the logarithms of a place begin
    limit: IntArray  # (places,): largest size that stands there
    logs: FloatArray
    owner: IntArray  # (places,): the operator that the place belongs to
    full: FloatArray  # (operators,)
    pairs: _Pairs

    @classmethod
    def of(cls, terms: Sequence[Term], factors: Sequence[float]) -> Lookup:
        """Lays the terms out, each times a factor."""
        scaled = list(zip(terms, factors, strict=True))
        fixed = sum(t.surface.full * len(t.modules) * factor for t, factor in scaled if not t.surface.curves)
        moving = [(term, factor) for term, factor in scaled if term.surface.curves]
        logs: list[FloatArray] = []
        rows: list[tuple[int, int, int, int]] = []  # constant, start, limit, owner
        slots: list[IntArray] = []
        full: list[float] = []
        pairs, used = _Builder(), 0
        for term, factor in moving:
            begins = []
            for curve in term.surface.curves:
                logs.append(np.log(curve.at(np.arange(curve.sizes[-1] + 1)) / term.surface.full))
                begins.append((used, curve.sizes[-1]))
                used += len(logs[-1])
            for place in range(len(term.modules)):
                if term.surface.knots:
                    pairs.add(term.surface, len(rows), len(full))
                for axis, begin in enumerate(begins):
                    rows.append((int(term.constants[place, axis]), *begin, len(full)))
                    slots.append(term.slots[place, axis])
                full.append(term.surface.full * factor)
        table = np.array(rows, dtype=np.int64).reshape(len(rows), 4)
        groups = terms[0].slots.shape[-1] if terms else 0
        return cls(
            fixed,
            table[:, 0],
            np.array(slots, dtype=np.int64).reshape(len(slots), groups),
            table[:, 1],
            table[:, 2],
            np.concatenate([np.zeros(0), *logs]),
            table[:, 3],
            np.array(full),
            pairs.built(),
        )

    @cached_property
    def _moving(self) -> FloatArray:
        return self.slots.T.astype(np.float64)

    def sum(self, widths: IntArray) -> FloatArray:
        """Milliseconds of all operators for widths ``(n, groups)``, shape ``(n,)``."""
        if not len(self.full):
            return np.full(len(widths), self.fixed)
        # As floating-point numbers, whole ones go through BLAS: as exact, and many times as fast.
        moved = (widths.astype(np.float64) @ self._moving).astype(np.int64)
        sizes = np.clip(moved + self.constants, 0, self.limit)
        parts = self.logs[self.start + sizes]
        logs = np.add.reduceat(parts, np.flatnonzero(np.diff(self.owner, prepend=-1)), axis=1)
        self.pairs.correct(logs, sizes)
        return np.asarray(np.exp(logs) @ self.full + self.fixed)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The corrections of operators with two axes, laid out like the curves."""

    first: IntArray  # (pairs,): place of the first axis; the second follows it
    operator: IntArray  # (pairs,)
    starts: tuple[IntArray, IntArray]  # where the cells of each axis begin
    below: IntArray
    way: FloatArray
    table: IntArray  # (pairs,): where the factors begin
    columns: IntArray  # (pairs,)
    factors: FloatArray

    def correct(self, logs: FloatArray, sizes: IntArray) -> None:
        """Adds the corrections to logarithms of shape ``(n, operators)``."""
        if not len(self.first):
            return
        row, column = (self.starts[axis] + sizes[:, self.first + axis] for axis in (0, 1))
        down, right = self.way[row], self.way[column]
        corner = self.table + self.below[row] * self.columns + self.below[column]
        upper = self.factors[corner] * (1 - right) + self.factors[corner + 1] * right
        under = corner + self.columns
        lower = self.factors[under] * (1 - right) + self.factors[under + 1] * right
        logs[:, self.operator] += upper * (1 - down) + lower * down


class _Builder:
    """Gathers pairs."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._below: list[IntArray] = []
        self._way: list[FloatArray] = []
        self._factors: list[FloatArray] = []
        self._known: dict[int, tuple[int, int, int, int]] = {}

    def add(self, surface: Surface, place: int, operator: int) -> None:
        """One operator with two axes."""
        if id(surface) not in self._known:
            # One row and column more, so that there is always a next one to look at.
            table = np.pad(np.array(surface.factors), ((0, 1), (0, 1)))
            starts = []
            for knots, curve in zip(surface.knots, surface.curves, strict=True):
                below, way = cell(np.array(knots), np.arange(curve.sizes[-1] + 1).clip(1))
                starts.append(sum(map(len, self._below)))
                self._below.append(below)
                self._way.append(way)
            begin = sum(map(len, self._factors))
            self._factors.append(table.ravel())
            self._known[id(surface)] = (starts[0], starts[1], begin, table.shape[1])
        self._rows.append((place, operator, *self._known[id(surface)]))

    def built(self) -> _Pairs:
        """All of them."""
        rows = np.array(self._rows, dtype=np.int64).reshape(len(self._rows), 6)
        none = [np.zeros(0, dtype=np.int64)]
        return _Pairs(
            rows[:, 0],
            rows[:, 1],
            (rows[:, 2], rows[:, 3]),
            np.concatenate(self._below or none),
            np.concatenate(self._way or [np.zeros(0)]),
            rows[:, 4],
            rows[:, 5],
            np.concatenate(self._factors or [np.zeros(0)]),
        )
