from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.latency import InterleavedTimes, interleaved_timing

TIMES = st.floats(0.01, 1e4)


def test_functions_run_alternately_and_threads_are_restored() -> None:
    seen: list[tuple[str, int]] = []
    before = torch.get_num_threads()
    names = {name: lambda name=name: seen.append((name, torch.get_num_threads())) for name in "ab"}
    measured = interleaved_timing(names, threads=before + 1, warmup=1, min_runs=4, min_seconds=0)
    assert seen == [(name, before + 1) for name in ["a", "b", *"ab" * 4]]
    assert torch.get_num_threads() == before
    assert {name: len(times) for name, times in measured.times.items()} == {"a": 4, "b": 4}
    with pytest.raises(ZeroDivisionError):
        interleaved_timing({"c": lambda: 1 / 0}, threads=before + 1)
    assert torch.get_num_threads() == before


def test_times_are_wall_clock_times() -> None:
    pause = threading.Event()
    times = interleaved_timing({"pause": lambda: pause.wait(0.02)}, min_runs=5, min_seconds=0).times["pause"]
    assert all(20 <= taken < 200 for taken in times)


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=9))
def test_the_ratio_is_the_median_over_rounds(pairs: list[tuple[float, float]]) -> None:
    one, other = map(list, zip(*pairs, strict=True))
    measured = InterleavedTimes({"one": one, "other": other})
    middle = sorted(a / b for a, b in pairs)
    low, high = middle[(len(pairs) - 1) // 2], middle[len(pairs) // 2]
    assert measured.ratio("other", to="one") == pytest.approx(math.sqrt(low * high))
    assert measured.ratio("one", to="other") == pytest.approx(1 / math.sqrt(low * high))
    assert measured.ratio("one", to="one") == 1
    assert measured.error("one", to="one") == 0


def test_the_error_is_that_of_a_median_of_normal_numbers() -> None:
    """The median scatters over many drawings as much as one drawing predicts."""
    rng = np.random.default_rng(0)
    drawings = [
        InterleavedTimes({"one": [1.0] * 101, "other": np.exp(rng.normal(0, 0.1, 101)).tolist()})
        for _ in range(300)
    ]
    ratios = [math.log(measured.ratio("other", to="one")) for measured in drawings]
    predicted = np.median([measured.error("other", to="one") for measured in drawings])
    assert predicted == pytest.approx(np.std(ratios), rel=0.15)


def test_the_references_decide_how_many_rounds_there_are() -> None:
    """The ratio of an uneven function to another is uncertain, that to itself is not."""
    pause, count = threading.Event(), [0]

    def uneven() -> None:
        count[0] += 1
        pause.wait(0.002 if count[0] % 2 else 0.008)

    runs = {"even": lambda: pause.wait(0.002), "uneven": uneven}
    by_itself = interleaved_timing(runs, {"uneven": "uneven"}, min_runs=2, min_seconds=0.03)
    doubt = interleaved_timing(runs, min_runs=2, min_seconds=0.03)
    assert sum(map(sum, by_itself.times.values())) / 2 < 60
    assert sum(map(sum, doubt.times.values())) / 2 >= 150
