from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.latency.build import KindTimes, calibrate
from secateur.latency.table import Calibration

KINDS = ("conv2d", "batch_norm", "relu")


def laid_out(seed: int, rows: int = 9) -> np.ndarray:
    """Times of three kinds of operators at several widths, the widest first."""
    rng = np.random.default_rng(seed)
    shares = np.linspace(1, 0.1, rows)[:, None] * rng.uniform(0.5, 1.5, (rows, 3))
    return np.array([10.0, 3.0, 1.0]) * shares.clip(0, 1)


def fitted(
    kinds: tuple[str, ...], operators: np.ndarray, network: np.ndarray, uneven: np.ndarray | None = None
) -> Calibration:
    none = np.zeros_like(operators)
    calls = np.full(len(operators), 1)
    return calibrate(KindTimes(kinds, operators, none if uneven is None else uneven, calls), network)


@given(
    st.integers(0, 1000),
    st.floats(0, 5),
    st.lists(st.floats(0.7, 1.5), min_size=3, max_size=3),
    st.floats(0.1, 100),
)
def test_times_that_obey_the_law_are_explained(
    seed: int, overhead: float, factors: list[float], unit: float
) -> None:
    operators = laid_out(seed) * unit
    network = overhead * unit + operators @ np.array(factors)
    found = fitted(KINDS, operators, network)
    assert [predicted for predicted, _ in found.runs] == pytest.approx(
        [measured for _, measured in found.runs], rel=0.03
    )
    whole = max(found.runs, key=lambda pair: pair[1])
    assert whole[0] == pytest.approx(whole[1], rel=0.015)


@given(st.integers(0, 1000))
def test_a_sum_that_is_right_already_is_left_alone(seed: int) -> None:
    operators = laid_out(seed)
    found = fitted(KINDS, operators, operators.sum(1))
    assert found.overhead == pytest.approx(0, abs=1e-4)
    assert list(found.factors.values()) == pytest.approx([1, 1, 1], abs=1e-4)


def test_what_the_runs_tell_nothing_about_stays_at_one() -> None:
    operators = np.column_stack([laid_out(0)[:, 0], np.full(9, 1e-9)])
    found = fitted(("conv2d", "add"), operators, 1.7 * operators[:, 0])
    assert found.factor("conv2d") == pytest.approx(1.7, rel=0.01)
    assert found.factor("add") == pytest.approx(1, abs=1e-6)
    assert found.factor("never seen") == 1


def test_noisy_runs_do_not_lead_far_from_one() -> None:
    """Runs of a sum that is right already, each but that of the whole network off by a tenth."""
    far = []
    for seed in range(100):
        operators, rng = laid_out(seed), np.random.default_rng(1000 + seed)
        network = operators.sum(1) * np.exp([0, *rng.normal(0, 0.1, 8)])
        factors = fitted(KINDS, operators, network).factors
        far.append(max(abs(factor - 1) for factor in factors.values()))
    assert np.median(far) < 0.2
    assert np.quantile(far, 0.9) < 0.4


def test_a_machine_that_holds_up_long_runs_does_not_make_all_of_them_overhead() -> None:
    """Times as measured beside three other processes on two cores: operators and narrow networks are quick
    enough to be let through, the whole network and some others are not.
    """
    network = np.array([6.67, 6.57, 4.10, 1.69, 4.98, 1.58, 1.36, 1.02, 0.96])
    convolutions = np.array([1.39, 1.40, 0.91, 0.72, 1.03, 0.65, 0.50, 0.36, 0.26])
    others = np.array([0.66, 0.66, 0.27, 0.24, 0.30, 0.21, 0.19, 0.14, 0.12])
    found = fitted(("conv2d", "others"), np.column_stack([convolutions, others]), network)
    assert found.overhead < 0.5
    least = min(predicted for predicted, _ in found.runs)
    assert least < 0.25 * max(predicted for predicted, _ in found.runs)


def test_no_kind_and_no_overhead_falls_below_zero() -> None:
    operators = laid_out(1)
    found = fitted(KINDS, operators, operators[:, 0] * 0.5)
    assert found.overhead >= 0
    assert min(found.factors.values()) > 0


def test_a_network_without_operators_is_overhead() -> None:
    found = fitted((), np.zeros((4, 0)), np.full(4, 2.0))
    assert found.overhead == pytest.approx(2.0)


@given(st.integers(0, 1000), st.floats(1.1, 1.6))
def test_sizes_that_are_not_whole_vectors_have_a_factor_of_their_own(seed: int, factor: float) -> None:
    operators = laid_out(seed, rows=13)
    uneven = operators * (np.arange(13) % 2)[:, None]
    found = fitted(KINDS, operators, operators.sum(1) + (factor - 1) * uneven.sum(1), uneven)
    predicted, measured = np.array(found.runs).T
    assert predicted == pytest.approx(measured, rel=0.03)
    assert found.factor("conv2d", uneven=True) > found.factor("conv2d")


def test_calls_that_are_shorter_within_the_network_have_a_negative_time() -> None:
    operators, calls = laid_out(3, rows=13), np.array([200, *np.random.default_rng(0).integers(90, 200, 12)])
    network = operators.sum(1) - 0.003 * calls
    found = calibrate(KindTimes(KINDS, operators, np.zeros_like(operators), calls), network)
    assert found.per_call == pytest.approx(-0.003, abs=0.0005)
    assert found.factor("conv2d") == pytest.approx(1, abs=0.02)
