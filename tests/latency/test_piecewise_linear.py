from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.latency.operators import Axis
from secateur.latency.piecewise_linear import measure_curve, measure_operator_time

axes = st.builds(
    lambda low, count, step: Axis(low, low + count * step, step),
    st.integers(1, 8),
    st.integers(0, 200),
    st.sampled_from([1, 2, 8, 49]),
)


@given(axes, st.floats(0.1, 10), st.floats(0, 1))
def test_straight_lines_are_found_exactly(axis: Axis, start: float, slope: float) -> None:
    curve = measure_curve(axis, lambda size: start + slope * size)
    sizes = np.arange(axis.low, axis.high + 1, axis.step)
    assert curve.at(sizes) == pytest.approx(start + slope * sizes, rel=1e-9)


@given(axes, st.randoms(use_true_random=False))
def test_what_was_measured_comes_back_and_everything_lies_between(axis: Axis, random) -> None:
    known: dict[int, float] = {}
    curve = measure_curve(axis, lambda size: known.setdefault(size, random.uniform(0.1, 5)))
    assert curve.at(np.array(list(known))).tolist() == list(known.values())
    assert all((size - axis.low) % axis.step == 0 and axis.low <= size <= axis.high for size in known)
    times = curve.at(np.arange(axis.low, axis.high + 1))
    assert min(known.values()) - 1e-12 <= times.min()
    assert times.max() <= max(known.values()) + 1e-12


@pytest.mark.parametrize("step", [8, 16, 32])
@pytest.mark.parametrize("width", [64, 256])
def test_steps_are_seen(step: int, width: int) -> None:
    def law(size: int) -> float:
        return math.ceil(size / step) + 0.001 * size

    asked: list[int] = []

    def measure(size: int) -> float:
        asked.append(size)
        return law(size)

    curve = measure_curve(Axis(1, width, 1), measure)
    assert len(asked) == len(set(asked)) <= 42
    sizes = np.arange(width // 4, width + 1)
    wrong = np.abs(curve.at(sizes) / [law(size) for size in sizes.tolist()] - 1)
    assert wrong.mean() < 0.03


def test_smooth_curves_need_few_looks() -> None:
    asked: list[int] = []

    def measure(size: int) -> float:
        asked.append(size)
        return 0.1 + size**0.9

    measure_curve(Axis(1, 2048, 1), measure)
    assert len(asked) < 34


def test_what_is_negligible_is_not_looked_into() -> None:
    asked: list[int] = []

    def measure(size: int) -> float:
        asked.append(size)
        return math.ceil(size / 8)

    measure_curve(Axis(1, 256, 1), measure, negligible=100.0)
    assert len(asked) < 25


@given(st.integers(20, 300), st.integers(20, 300))
def test_products_and_sums_of_two_axes(first: int, second: int) -> None:
    time = measure_operator_time(
        [Axis(1, first, 1), Axis(1, second, 1)], lambda sizes: 1.0 + 0.01 * sizes[0] * sizes[1]
    )
    shares = np.array([[1, 1], [0.5, 0.5], [0.25, 0.8], [0.6, 0.3]])
    sizes = np.round(shares * [first, second]).astype(np.int64)
    exact = 1.0 + 0.01 * sizes[:, 0] * sizes[:, 1]
    assert time.at(sizes) == pytest.approx(exact, rel=0.08)
    assert time.at(np.array([first, second])) == pytest.approx(exact[0], rel=1e-12)


@given(axes, st.randoms(use_true_random=False))
def test_a_disturbed_measurement_is_taken_once_more(axis: Axis, random) -> None:
    """Every fifth measurement takes two to three times as long as it should."""
    tries: dict[int, int] = {}

    def law(size: int) -> float:
        return 1 + 0.05 * size

    def disturbed(size: int) -> float:
        tries[size] = tries.get(size, 0) + 1
        return law(size) * (random.uniform(2, 3) if random.random() < 0.2 else 1)

    def undisturbed(size: int) -> float:
        tries[size] = tries.get(size, 0) + 1
        return law(size)

    curve = measure_curve(axis, disturbed, again=undisturbed)
    assert max(tries.values()) <= 2
    sizes = np.array(curve.sizes)
    assert curve.milliseconds[-1] == law(axis.high)
    slow = np.array(curve.milliseconds) > 1.05 * np.minimum.accumulate(curve.milliseconds[::-1])[::-1]
    assert not slow.any()
    assert (curve.at(sizes) <= law(axis.high) * 1.05).all()
