"""Times of anything that runs, taken in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch

from secateur.heap import kept_heap
from secateur.latency import Latency

Key = TypeVar("Key", bound=Hashable)


@kept_heap()
def take_turns(
    runs: Mapping[Key, Callable[[], object]],
    *,
    batch: int,
    threads: int | None = None,
    devices: Mapping[Key, str] | None = None,
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 1.0,
) -> dict[Key, Latency]:
    """Times of several things that run one after the other, again and again.

    So a machine that is busy for a while slows all of them alike. A round is over when each has run once;
    rounds go on until there are ``min_runs`` of them and ``min_seconds`` for each have passed. PyTorch's
    number of threads is put back afterwards; a runtime with threads of its own was told when it was opened.

    Args:
        runs: what to run, by name.
        batch: examples in a run, for the record.
        threads: of PyTorch; as they are if not given.
        devices: where each runs, for the record; the CPU if not given.
        warmup: runs of each before the clock starts.
        min_runs: least number of timed runs of each.
        min_seconds: least time spent on each, seconds.

    Returns:
        Median and quartiles, by name.

    >>> times = take_turns({"sum": lambda: torch.ones(9).sum()}, batch=1, min_runs=4, min_seconds=0)
    >>> times["sum"].runs, times["sum"].low_ms <= times["sum"].median_ms
    (4, True)
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for run in runs.values():
            for _ in range(warmup):
                run()
        times: dict[Key, list[float]] = {name: [] for name in runs}
        rounds, spent = 0, 0.0
        while rounds < min_runs or spent < min_seconds * len(runs):
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                seconds = time.perf_counter() - begin
                times[name].append(seconds * 1e3)
                spent += seconds
            rounds += 1
    finally:
        torch.set_num_threads(before)
    where = devices or {}
    found = {}
    for name, taken in times.items():
        low, median, high = (float(value) for value in np.percentile(taken, (25, 50, 75)))
        found[name] = Latency(median, low, high, rounds, threads or before, where.get(name, "cpu"), batch)
    return found
