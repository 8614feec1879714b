"""Calculate with linear forms: counts of channels, each with a weight, plus a constant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from secateur.graph.groups import IntArray

Weights = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Form:
    """A number that changes with a cut: weighted variables plus a constant.

    A variable is one channel (1 while it is there, 0 when it is removed) or an unknown attribute.

    Attributes:
        keys: the variables, in ascending order: channels by their number, attributes by negative numbers.
        weights: for each variable, its weight; none is zero.
        rest: the constant.
        value: the number before any cut.
    """

    keys: IntArray
    weights: Weights
    rest: float
    value: float

    @staticmethod
    def constant(value: float) -> Form:
        """Make a number that never changes."""
        return Form(np.zeros(0, np.int64), np.zeros(0), value, value)

    @staticmethod
    def of(keys: IntArray, rest: float, value: float) -> Form:
        """Count each key as often as it occurs, plus a constant."""
        found, counts = np.unique(keys, return_counts=True)
        return Form(found.astype(np.int64), counts.astype(np.float64), rest, value)

    @property
    def fixed(self) -> bool:
        """Return whether the number cannot change."""
        return len(self.keys) == 0

    @property
    def is_zero(self) -> bool:
        """Return whether the number is zero, before any cut and after it."""
        return self.fixed and abs(self.rest) < 1e-9

    @property
    def unknowns(self) -> list[int]:
        """List the attributes among the variables."""
        return [int(key) for key in self.keys if key < 0]

    def times(self, factor: float) -> Form:
        """Multiply by a constant."""
        if factor == 0:
            return Form.constant(0)
        return Form(self.keys, self.weights * factor, self.rest * factor, self.value * factor)

    def plus(self, other: Form) -> Form:
        """Add another form."""
        keys, places = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        weights = np.zeros(len(keys))
        np.add.at(weights, places.ravel(), np.concatenate([self.weights, other.weights]))
        kept = np.abs(weights) > 1e-9
        return Form(keys[kept], weights[kept], self.rest + other.rest, self.value + other.value)

    def minus(self, other: Form) -> Form:
        """Subtract another form."""
        return self.plus(other.times(-1))

    def without(self, key: int) -> tuple[float, Form]:
        """Return the weight of one variable, and the form without it; its value is not kept."""
        place = int(np.searchsorted(self.keys, key))
        keys, weights = np.delete(self.keys, place), np.delete(self.weights, place)
        return float(self.weights[place]), Form(keys, weights, self.rest, 0.0)

    def counts(self) -> list[int] | None:
        """Return the weights, and last the constant, if all are whole and not negative; else ``None``."""
        numbers = np.append(self.weights, self.rest)
        whole = np.rint(numbers)
        if (np.abs(numbers - whole) > 1e-6).any() or (whole < 0).any():
            return None
        found: list[int] = whole.astype(np.int64).tolist()
        return found


def multiples(labels: IntArray, count: int) -> list[IntArray]:
    """Repeat a vector: each label in its place, or all of them one after the other."""
    return [np.repeat(labels, count), np.tile(labels, count)]


def apart(channel: IntArray, one: IntArray, other: IntArray) -> int:
    """Count the distinct channels that remain if two vectors are joined.

    Args:
        channel: for each label, the channel that it belongs to.
        one: a vector of labels.
        other: another, of the same length.
    """
    found, ends = np.unique(channel[np.concatenate([one, other])], return_inverse=True)
    left, right = np.split(ends.ravel(), 2)
    links = coo_array((np.ones(len(left)), (left, right)), shape=(len(found), len(found)))
    return int(connected_components(links, directed=False)[0])
