from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.criteria import NORMALIZERS, normalize
from secateur.errors import UsageError

rows = st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=20)


@given(rows)
def test_each_is_its_formula(values: list[float]) -> None:
    divisors = {
        "l2": math.sqrt(math.fsum(value * value for value in values)),
        "l1": math.fsum(map(abs, values)),
        "max": max(map(abs, values)),
    }
    for how, divisor in divisors.items():
        wanted = [value / divisor if divisor else 0.0 for value in values]
        assert normalize(torch.tensor(values), how).tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-30)
    low, high = min(values), max(values)
    wanted = [(value - low) / (high - low) if high > low else 0.0 for value in values]
    assert normalize(torch.tensor(values), "min-max").tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert normalize(torch.tensor(values), "none").tolist() == values


@pytest.mark.parametrize("how", NORMALIZERS)
def test_zero_constant_single_and_empty_groups_are_defined(how: str) -> None:
    assert normalize(torch.zeros(3), how).tolist() == [0.0, 0.0, 0.0]
    assert normalize(torch.zeros(0), how).shape == (0,)
    assert normalize(torch.full((4,), 2.0), how).isfinite().all()
    assert normalize(torch.tensor([1e-40]), how).isfinite().all()


def test_an_unknown_one_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="choose one of l2, l1, max, min-max, none"):
        normalize(torch.zeros(2), "L2")
