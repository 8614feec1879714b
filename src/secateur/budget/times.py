"""Times as a budget takes them."""

from __future__ import annotations

import math
import re

import numpy as np

_UNITS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_PATTERN = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>ns|us|µs|ms|s)")
_NANOSECONDS = 1_000_000  # in a millisecond


class Milliseconds(float):
    """A time, which as a bare number up to 1 would be taken for a share.

    >>> Milliseconds(0.4), Milliseconds(12)
    (0.4 ms, 12 ms)
    """

    def __str__(self) -> str:
        return f"{float(self):.4g} ms"

    __repr__ = __str__

    @property
    def nanoseconds(self) -> int:
        """The same in whole nanoseconds."""
        return round(self * _NANOSECONDS)

    @classmethod
    def of_nanoseconds(cls, count: float) -> Milliseconds:
        """The inverse of :attr:`nanoseconds`."""
        return cls(count / _NANOSECONDS)


def as_time(limit: object) -> Milliseconds | None:
    """What is meant as a time; ``None`` for everything else, shares among them.

    Args:
        limit: milliseconds as an integer or as a float above 1, or words.

    >>> as_time("800 us"), as_time(12), as_time(0.5)
    (0.8 ms, 12 ms, None)
    """
    if isinstance(limit, str):
        found = _PATTERN.fullmatch(limit.strip().lower())
        time = float(found["number"]) * _UNITS[found["unit"]] if found else 0.0
    elif isinstance(limit, bool) or not isinstance(limit, int | float | np.integer | np.floating):
        return None
    elif isinstance(limit, float | np.floating) and not isinstance(limit, Milliseconds) and limit <= 1:
        return None  # a share
    else:
        time = float(limit)
    return Milliseconds(time) if 0 < time < math.inf else None
