"""Times of runs that alternate, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")
Key = TypeVar("Key")


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """Return the result of an action and its seconds."""
    began = time.perf_counter()
    result = action()
    return result, time.perf_counter() - began


def interleaved(actions: Mapping[Key, Callable[[], float]], rounds: int) -> dict[Key, float]:
    """Run all actions one after the other, for some rounds, and return the median of each.

    Args:
        actions: each returns the seconds, or whatever else it measures.
        rounds: how often each runs.
    """
    found: dict[Key, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            found[name].append(action())
    return {name: statistics.median(values) for name, values in found.items()}
