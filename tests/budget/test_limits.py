from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from secateur.budget import Budget
from secateur.budget.choice_space import ChoiceSpace
from secateur.budget.limits import CostEvaluator, amount_of
from secateur.errors import UsageError
from tests.fakes import FakeGraph, chain, graphs


@pytest.mark.parametrize(
    "limit",
    [0, -1, True, False, 0.0, -0.5, 1.0, 1.5, 1.0001, 2.5, float("nan"), float("inf"), "0.5", None,
     Decimal("0.5"), Fraction(1, 2), [0.5], torch.tensor(0.5), np.True_, 1j],
)  # fmt: skip
def test_limits_that_are_neither_share_nor_amount(limit: object):
    if limit is None:
        with pytest.raises(UsageError, match="at least one limit: macs, params, channels, memory, latency"):
            Budget(macs=None)
        return
    for name in ("macs", "params", "channels", "memory"):
        with pytest.raises(UsageError, match=rf"{name}: .* is neither a share nor an amount; write"):
            Budget(**{name: limit})


def test_numbers_of_other_libraries_become_python_numbers():
    budget = Budget(macs=np.float32(0.3), params=np.int64(7), channels=np.float64(0.5))
    assert budget == Budget(macs=0.3, params=7, channels=0.5)
    assert [type(limit) for limit in budget.given.values()] == [float, int, float]


@given(st.integers(1, 10**6), st.integers(0, 10**15))
def test_shares_are_decimal_numbers(millionths: int, original: int):
    share = millionths / 10**6
    assert amount_of(share, original) == millionths * original // 10**6
    assert amount_of(share, original, up=True) == -(-millionths * original // 10**6)


def test_a_share_of_one_is_everything_and_an_amount_is_itself():
    assert amount_of(1.0, 10**17 + 1) == 10**17 + 1
    assert amount_of(5, 3) == 5


@given(graphs())
def test_amounts_refer_to_the_network_as_it_is(graph: FakeGraph):
    cost = graph.cost()
    channels = sum(group.channels for group in graph.prunable)
    assert CostEvaluator(ChoiceSpace.of(graph), {}).original == {**asdict(cost), "channels": channels}
    budget = Budget(macs=0.5, params=17, channels=0.3, memory=10**9)
    assert budget.amounts(graph) == {
        "macs": cost.macs // 2,
        "params": 17,
        "channels": channels * 3 // 10,
        "memory": 10**9,
    }


def test_latency_needs_a_model():
    budget = Budget(latency=0.5, macs=0.5)
    with pytest.raises(
        UsageError, match="latency budget needs the network's times on this device: .*latency_table"
    ):
        budget.amounts(chain(3))


def test_a_budget_is_a_readable_value():
    budget = Budget(macs=0.333, memory=12_000)
    assert str(budget) == "at most 33.3% of the MACs, at most 12,000 bytes of activations"
    assert hash(budget) == hash(Budget(macs=0.333, memory=12_000))
    with pytest.raises(ValidationError, match="frozen"):
        budget.macs = 0.5  # type: ignore[misc]
