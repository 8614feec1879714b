from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.training.optimizers import learning_rate_factors


@given(
    name=st.sampled_from(["constant", "cosine", "one-cycle"]),
    steps=st.integers(1, 60),
    warmup=st.floats(0, 0.99),
)
def test_every_factor_is_a_share_of_the_base_and_the_base_is_reached(
    name: str, steps: int, warmup: float
) -> None:
    factors = list(learning_rate_factors(name, steps, warmup))
    assert len(factors) == steps
    assert all(0 < value <= 1 for value in factors)
    if name != "one-cycle":  # which may step over its peak
        assert max(factors) == pytest.approx(1)


def cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def one_cycle(progress: float) -> float:
    if progress < 0.3:
        return 1 / 25 + (1 - 1 / 25) * (1 - cosine(progress / 0.3))
    return 1e-4 + (1 - 1e-4) * cosine((progress - 0.3) / 0.7)


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("curve", [cosine, one_cycle])
def test_factors_follow_their_formula(curve: Callable[[float], float], steps: int) -> None:
    expected = [curve(step / steps) for step in range(steps)]
    name = curve.__name__.replace("_", "-")
    assert list(learning_rate_factors(name, steps)) == pytest.approx(expected, abs=1e-9)


def test_warm_up_climbs_in_a_straight_line() -> None:
    factors = list(learning_rate_factors("cosine", 20, warmup=0.25))
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert factors[5:] == pytest.approx([cosine(step / 15) for step in range(15)])
