"""Many groups at once, on made-up costs: too many exchanges to try, so that they are judged first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.budget import Budget, make_plan
from secateur.budget.curves import WidthCurve, WidthCurves
from secateur.budget.integer_programme import GroupOptions, minimise_damage
from secateur.budget.limits import CostEvaluator
from secateur.errors import BudgetError
from secateur.graph import ChannelGraph
from secateur.graph.groups import IntArray
from tests.fakes import chain

GROUPS, WIDTHS = 60, 24


class MadeUp:
    """A meter of costs that are given as functions, shape (..., groups) to (...)."""

    def __init__(self, *costs: Callable[[IntArray], IntArray], share: float) -> None:
        self.costs = costs
        self.allowed = np.array(
            [int(share * cost(np.full(GROUPS, WIDTHS, dtype=np.int64))) for cost in costs], dtype=np.int64
        )

    def limited(self, widths: IntArray) -> IntArray:
        return np.stack([cost(widths) for cost in self.costs], axis=-1)

    def within(self, widths: IntArray) -> Any:
        return (self.limited(widths) <= self.allowed).all(axis=-1)


def convex(rng: np.random.Generator) -> GroupOptions:
    """A group whose first channels matter most."""
    steps = np.sort(rng.exponential(rng.uniform(0.1, 10), WIDTHS - 1))
    return GroupOptions(np.arange(1, WIDTHS + 1), np.append(np.cumsum(steps)[::-1], 0.0))


def chosen(meter: MadeUp, choices: list[GroupOptions]) -> tuple[IntArray, float]:
    widths = minimise_damage(cast(CostEvaluator, meter), choices, np.zeros((0, len(choices)), dtype=bool))
    return widths, float(sum(c.damages[w - 1] for c, w in zip(choices, widths, strict=True)))


def check_used_up(meter: MadeUp, widths: IntArray) -> None:
    """The limits hold, and no group could be a step wider."""
    assert meter.within(widths)
    for group in np.flatnonzero(widths < WIDTHS):
        wider = widths.copy()
        wider[group] += 1
        assert not meter.within(wider)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.floats(0.1, 0.9))
def test_costs_that_add_up_come_close_to_the_bound_of_the_relaxed_problem(seed: int, share: float) -> None:
    """Where a share of a step may be taken, steps go by their price alone; no whole steps do better."""
    rng = np.random.default_rng(seed)
    choices = [convex(rng) for _ in range(GROUPS)]
    unit = rng.integers(50, 500, GROUPS)
    meter = MadeUp(lambda widths: widths @ unit, share=max(share, 1.5 / WIDTHS))
    widths, damage = chosen(meter, choices)
    check_used_up(meter, widths)
    steps = sorted(
        ((choice.damages[w] - choice.damages[w + 1]) / cost, cost)
        for choice, cost in zip(choices, unit.tolist(), strict=True)
        for w in range(WIDTHS - 1)
    )
    bound = float(sum(choice.damages[0] for choice in choices))
    left = float(meter.allowed[0] - unit.sum())
    for price, cost in reversed(steps):
        bound -= price * min(cost, left)
        left -= min(cost, left)
    assert bound - 1e-9 <= damage <= bound + 0.02 * float(sum(choice.damages[0] for choice in choices))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.floats(0.1, 0.9))
def test_products_of_widths_and_two_limits_are_kept_and_used_up(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    choices = [convex(rng) for _ in range(GROUPS)]
    pixels, unit = rng.integers(1, 50, GROUPS - 1), rng.integers(50, 500, GROUPS)
    meter = MadeUp(
        lambda widths: (widths[..., :-1] * widths[..., 1:]) @ pixels,
        lambda widths: widths @ unit,
        share=share,
    )
    widths, damage = chosen(meter, choices)
    check_used_up(meter, widths)
    same = next(w for w in range(WIDTHS, 0, -1) if meter.within(np.full(GROUPS, w)))
    assert damage < sum(choice.damages[same - 1] for choice in choices)


def test_it_ends_where_nothing_can_be_narrowed() -> None:
    choices = [GroupOptions(np.arange(1, 4), np.array([2.0, 1.0, 0.0])) for _ in range(3)]
    meter = Impossible()
    with pytest.raises(
        BudgetError, match="no available widths are within the budget: .* 5,000 MACs, and at most 10 MACs"
    ):
        minimise_damage(cast(CostEvaluator, meter), choices, np.zeros((0, len(choices)), dtype=bool))


class Impossible:
    """More than is allowed at all widths."""

    limits: ClassVar[dict[str, int]] = {"macs": 10}
    allowed = np.array([10])

    def limited(self, widths: IntArray) -> IntArray:
        return np.full((*widths.shape[:-1], 1), 5000, dtype=np.int64)

    def within(self, widths: IntArray) -> Any:
        return (self.limited(widths) <= self.allowed).all(axis=-1)


def test_a_plan_is_found_where_only_the_least_widths_are_fast_enough() -> None:
    """Twice the floor of a tenth is fast and the floor itself is not: the least widths still are."""
    graph = chain(20, 20, 3, frozen=frozenset({2}))
    curves = WidthCurves(
        {
            name: WidthCurve(tuple(range(20)), tuple(range(1, 21)), tuple(np.linspace(1, 0, 20).tolist()))
            for name in ("g0", "g1")
        },
        "kl",
    )
    plan = make_plan(cast(ChannelGraph, graph), curves, Budget(latency="2 ms"), latency=OnlyLeast())
    assert [len(plan.keep[name]) for name in ("g0", "g1")] in ([1, 1], [4, 4])


class OnlyLeast:
    """Fast with one channel of each group, and with exactly a fifth of each, and slow otherwise."""

    def milliseconds(self, widths: IntArray) -> Any:
        inner = widths[..., :2]
        fast = (inner == 1).all(axis=-1) | (inner == 4).all(axis=-1)
        return np.where(fast, 1.0, 100.0)


def test_the_output_of_the_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [convex(np.random.default_rng(0)) for _ in range(GROUPS)]
    with monkeypatch.context() as patched:
        patched.setattr("os.dup2", lambda *_: pytest.fail("the library redirects a file descriptor"))
        chosen(MadeUp(lambda widths: widths.sum(axis=-1), share=0.5), choices)
