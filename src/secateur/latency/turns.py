"""Turns: several things that run one after the other, again and again, and how long each took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Key = TypeVar("Key", bound=Hashable)

_PRECISE = 0.01  # standard error up to which a ratio counts as known
_PATIENCE = 5  # times the least time: how long to look for that
_QUARTILES = 1.349  # their distance in standard deviations, for normal numbers
_MEDIAN = 1.2533  # standard error of their median, in those of their mean
_LEAST = 1e-9  # milliseconds; a clock may say that no time has passed


@dataclass(frozen=True)
class Turns(Generic[Key]):
    """Times of several things that ran in turn.

    Attributes:
        times: of each, milliseconds, turn by turn.

    >>> turns = Turns({"before": [10.0, 20.0, 30.0], "after": [5.0, 10.0, 16.0]})
    >>> round(turns.ratio("after", to="before"), 9)
    2.0
    """

    times: Mapping[Key, list[float]]

    def ratio(self, name: Key, to: Key) -> float:
        """How many times as long the other took in the same turn, the median over turns.

        A machine that is slow for a while is slow for both.
        """
        return math.exp(np.median(self._logarithms(name, to)))

    def error(self, name: Key, to: Key) -> float:
        """Standard error of that ratio, as a share of it."""
        logarithms = self._logarithms(name, to)
        low, high = np.percentile(logarithms, (25, 75))
        return float(_MEDIAN * (high - low) / _QUARTILES / math.sqrt(len(logarithms)))

    def _logarithms(self, name: Key, to: Key) -> npt.NDArray[np.float64]:
        one, other = (np.log(np.maximum(self.times[key], _LEAST)) for key in (to, name))
        return np.asarray(one - other)


def take_turns(
    runs: Mapping[Key, Callable[[], object]],
    against: Mapping[Key, Key] | None = None,
    *,
    threads: int | None = None,
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 1.0,
) -> Turns[Key]:
    """Runs several things one after the other, again and again, so that a busy machine slows all alike.

    A turn is over when each has run once; turns go on until there are ``min_runs`` of them and
    ``min_seconds`` for each have passed. Where the ratios of their times are not known to one percent by then
    (standard error of the median over turns), they go on for up to five times as long. Memory that a run
    frees is kept for the next; the number of threads and the memory are put back afterwards.

    Args:
        runs: what to run, by name; each returns when it is done.
        against: what each is held against, by name; the first of all if not given.
        threads: of PyTorch, within an operator; as they are if not given.
        warmup: runs of each before the clock starts.
        min_runs: least number of timed runs of each.
        min_seconds: least time spent on each, seconds.

    Returns:
        The times.

    >>> turns = take_turns({"sum": lambda: torch.ones(9).sum()}, min_runs=4, min_seconds=0)
    >>> len(turns.times["sum"]), turns.ratio("sum", to="sum")
    (4, 1.0)
    """
    first = next(iter(runs))
    pairs = dict.fromkeys(runs, first) if against is None else against
    turns: Turns[Key] = Turns({name: [] for name in runs})
    with torch_threads(threads):
        for run in runs.values():
            for _ in range(warmup):
                run()
        spent = 0.0
        while not _enough(turns, pairs, spent / len(runs), min_runs, min_seconds):
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                seconds = time.perf_counter() - begin
                turns.times[name].append(seconds * 1e3)
                spent += seconds
    return turns


def _enough(
    turns: Turns[Key], pairs: Mapping[Key, Key], seconds: float, min_runs: int, min_seconds: float
) -> bool:
    """Whether to stop: after enough runs and time, once ratios are known well or patience is at its end."""
    runs = len(next(iter(turns.times.values())))
    if runs < min_runs or seconds < min_seconds:
        return False
    return seconds >= _PATIENCE * min_seconds or all(
        turns.error(name, to) <= _PRECISE for name, to in pairs.items()
    )


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Lets PyTorch use so many threads within an operator for the length of a block; None leaves it alone."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
