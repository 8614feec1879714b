"""Many groups at once, on made-up costs: too many exchanges to try, so that they are judged first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.budget.knapsack import Choice, least_damage
from secateur.budget.limits import Meter
from secateur.graph.groups import IntArray

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


def convex(rng: np.random.Generator) -> Choice:
    """A group whose first channels matter most."""
    steps = np.sort(rng.exponential(rng.uniform(0.1, 10), WIDTHS - 1))
    return Choice(np.arange(1, WIDTHS + 1), np.append(np.cumsum(steps)[::-1], 0.0))


def chosen(meter: MadeUp, choices: list[Choice]) -> tuple[IntArray, float]:
    widths = least_damage(cast(Meter, meter), choices)
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
