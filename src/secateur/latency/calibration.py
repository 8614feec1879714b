"""Calibration: what the operators of a network take together, where each was timed by itself.

Calling operators costs time that none of them shows, and what one leaves in the caches speeds up or slows
down the next. So the network runs at several widths, and its times are laid out by least squares:

    time of the network = overhead + sum over kinds of factor * time of the operators of that kind

Factors are expected near one and the more firmly so the less the runs tell about them (ridge regression
toward one). How far the runs lie from the fit says how much they can tell: on a noisy machine factors stay
near one, where they would follow chance otherwise, and plans would be drawn to what chance made look cheap.
But runs never tell less than was expected beforehand. Else a busy machine, which holds up long runs and lets
short ones through, would make nearly all of the network's time an overhead that no cut lowers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import lsq_linear

FloatArray = npt.NDArray[np.float64]

_NOISE = 0.02  # least error that is expected of a time of the network, as a share
_SETTLED = 0.05  # share by which the error may still change
_ROUNDS = 20  # of fitting and looking at what is left; the error settles in a few
_OF_WHOLE = 0.005  # the same at its full widths, to which all shares refer
_TRUST = 0.3  # expected error of a factor, and the largest of a time of the network, as a share
_LEAST = 0.05  # no kind of operator gets off cheaper


@dataclass(frozen=True)
class Calibration:
    """How times of operators become the time of a network.

    Attributes:
        overhead: milliseconds that no operator accounts for.
        factors: by kind of operator, what its times are multiplied by; one where nothing is said.
        seen: for several widths, the time that comes of this and the time that was measured,
            milliseconds, ascending.

    >>> Calibration(overhead=0.5, factors={"relu": 1.2}).factor("relu")
    1.2
    """

    overhead: float = 0.0
    factors: Mapping[str, float] = field(default_factory=dict)
    seen: tuple[tuple[float, float], ...] = ()

    def factor(self, kind: str) -> float:
        """What times of a kind of operator are multiplied by."""
        return self.factors.get(kind, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "overhead": self.overhead,
            "factors": dict(self.factors),
            "seen": [list(pair) for pair in self.seen],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of :meth:`to_dict`."""
        factors = {str(kind): float(factor) for kind, factor in data["factors"].items()}
        seen = tuple((float(one), float(whole)) for one, whole in data["seen"])
        return cls(float(data["overhead"]), factors, seen)


def calibrate(kinds: Sequence[str], operators: FloatArray, network: FloatArray) -> Calibration:
    """The calibration that explains measured times best.

    Args:
        kinds: of operators.
        operators: time of each kind at each width, each operator by itself, milliseconds, shape
            ``(widths, kinds)``; the first are those of the whole network.
        network: time of the network at each width, milliseconds, shape ``(widths,)``.

    Returns:
        Overhead and factors, none of them below zero.

    >>> found = calibrate(["conv2d"], np.array([[4.0], [2.0], [1.0]]), np.array([4.9, 2.7, 1.6]))
    >>> round(found.overhead, 2), round(found.factors["conv2d"], 2)
    (0.5, 1.1)
    """
    noise = _NOISE
    for _ in range(_ROUNDS):
        found = _fitted(operators, network, noise)
        told = found[0] + operators @ found[1:]
        apart = np.log(told / network)[1:]
        shown = float(np.clip(np.sqrt(np.mean(apart**2)), _NOISE, _TRUST)) if len(apart) else _NOISE
        if abs(shown - noise) < _SETTLED * noise:
            break
        noise = shown
    seen = sorted(zip(told.tolist(), network.tolist(), strict=True))
    return Calibration(float(found[0]), dict(zip(kinds, found[1:].tolist(), strict=True)), tuple(seen))


def _fitted(operators: FloatArray, network: FloatArray, noise: float) -> FloatArray:
    """Overhead and factors, where times of the network have an error of some size, as a share."""
    count = operators.shape[1]
    errors = np.array([_OF_WHOLE, *[noise] * (len(network) - 1)])
    runs = np.column_stack([np.ones(len(network)), operators]) / (errors * network)[:, None]
    expected = np.column_stack([np.zeros(count), np.eye(count)]) / _TRUST
    low = np.array([0.0, *[_LEAST] * count])
    left = np.concatenate([runs, expected])
    right = np.concatenate([1 / errors, np.full(count, 1 / _TRUST)])
    return np.asarray(lsq_linear(left, right, (low, np.full(count + 1, np.inf))).x, dtype=np.float64)
