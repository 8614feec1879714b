"""Widths by damage, held against trying all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.budget import Budget, WidthCurve, WidthCurves, Widths, make_plan
from secateur.errors import BudgetError, UsageError
from secateur.graph import ChannelGraph, trace

GRAPH: ChannelGraph = trace(
    nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 1)
    ),
    torch.zeros(1, 3, 9, 9),
)
NAMES = [group.name for group in GRAPH.prunable]


def curves(damages: dict[str, list[float]]) -> WidthCurves:
    """Curves with a damage for every width from 1 to all."""
    return WidthCurves(
        {
            name: WidthCurve(tuple(range(len(row))), tuple(range(1, len(row) + 1)), tuple(row))
            for name, row in damages.items()
        },
        "kl",
    )


@st.composite
def any_damages(draw: st.DrawFn) -> dict[str, list[float]]:
    rows = {}
    for group in GRAPH.prunable:
        steps = draw(st.lists(st.floats(0.01, 1), min_size=group.channels - 1, max_size=group.channels - 1))
        rows[group.name] = [*np.cumsum(steps)[::-1].tolist(), 0.0]
    return rows


@settings(max_examples=25, deadline=None)
@given(damages=any_damages(), macs=st.floats(0.3, 0.95), params=st.floats(0.3, 0.95))
def test_the_damage_is_near_the_least_within_all_limits(
    damages: dict[str, list[float]], macs: float, params: float
) -> None:
    budget = Budget(macs=macs, params=params)
    plan = make_plan(GRAPH, curves(damages), budget)
    amounts = budget.amounts(GRAPH)
    assert plan.cost_after.macs <= amounts["macs"]
    assert plan.cost_after.params <= amounts["params"]
    widths = {name: len(plan.keep.get(name, damages[name])) for name in NAMES}
    found = sum(damages[name][width - 1] for name, width in widths.items())
    best = np.inf
    for combination in itertools.product(*(range(1, len(damages[name]) + 1) for name in NAMES)):
        cost = GRAPH.cost(dict(zip(NAMES, combination, strict=True)))
        if cost.macs <= amounts["macs"] and cost.params <= amounts["params"]:
            total = sum(damages[name][width - 1] for name, width in zip(NAMES, combination, strict=True))
            best = min(best, total)
    assert best - 1e-9 <= found <= best * 1.25 + 0.15


WIDE: ChannelGraph = trace(
    nn.Sequential(nn.Conv2d(3, 60, 3), nn.ReLU(), nn.Conv2d(60, 60, 3), nn.ReLU(), nn.Conv2d(60, 4, 3)),
    torch.zeros(1, 3, 9, 9),
)


@pytest.mark.parametrize(
    ("macs", "least"), [(0.08, 6), (0.02, 3), (0.004, 1)], ids=["room", "less room", "no room"]
)
def test_no_group_nearly_vanishes_while_the_budget_has_room(macs: float, least: int) -> None:
    free, dear = (
        [1e-6 * (60 - width) for width in range(1, 61)],
        [0.1 * (60 - width) for width in range(1, 61)],
    )
    first, second = (group.name for group in WIDE.prunable)
    plan = make_plan(WIDE, curves({first: free, second: dear}), Budget(macs=macs))
    assert plan.cost_after.macs <= macs * plan.cost_before.macs
    assert min(len(kept) for kept in plan.keep.values()) == least


def test_a_cap_that_is_asked_for_goes_below_that() -> None:
    free = [1e-6 * (60 - width) for width in range(1, 61)]
    names = [group.name for group in WIDE.prunable]
    plan = make_plan(
        WIDE, curves(dict.fromkeys(names, free)), Budget(macs=0.5), widths=Widths(caps={names[0]: 2})
    )
    assert len(plan.keep[names[0]]) == 2


def test_nothing_could_be_widened() -> None:
    rows = {name: [float(w) for w in range(GRAPH[name].channels)][::-1] for name in NAMES}
    budget = Budget(macs=0.5)
    plan = make_plan(GRAPH, curves(rows), budget)
    for name in plan.keep:
        wider = {other: len(kept) + (other == name) for other, kept in plan.keep.items()}
        assert GRAPH.cost(wider).macs > budget.amounts(GRAPH)["macs"]


def test_the_cheap_group_goes_first_and_in_its_order() -> None:
    rows = {name: [9.0] * (GRAPH[name].channels - 1) + [0.0] for name in NAMES}
    rows[NAMES[1]] = [1e-3, 5e-4, 4e-4, 3e-4, 2e-4, 0.0]
    plan = make_plan(GRAPH, curves(rows), Budget(macs=0.7))
    assert set(plan.keep) == {NAMES[1]}
    assert plan.keep[NAMES[1]] == tuple(range(6))[-len(plan.keep[NAMES[1]]) :]


def test_rules_hold_for_curves_too() -> None:
    rows = {name: np.linspace(1, 0, GRAPH[name].channels).tolist() for name in NAMES}
    plan = make_plan(GRAPH, curves(rows), Budget(macs=0.6), widths=Widths(multiple_of=2, ignore=NAMES[0]))
    assert NAMES[0] not in plan.keep
    assert all(len(kept) % 2 == 0 for kept in plan.keep.values())
    with pytest.raises(BudgetError, match="no plan meets the budget"):
        make_plan(GRAPH, curves(rows), Budget(macs=0.05), widths=Widths(ignore=NAMES[0]))


def test_a_missing_curve_is_an_error_that_names_the_group() -> None:
    rows = {name: np.linspace(1, 0, GRAPH[name].channels).tolist() for name in NAMES[1:]}
    with pytest.raises(UsageError, match=f"group '{NAMES[0]}' of 5 channels has no width curve"):
        make_plan(GRAPH, curves(rows), Budget(macs=0.6))
    part = WidthCurves(curves(rows), "kl", {NAMES[0]: "not measured"})
    assert NAMES[0] not in make_plan(GRAPH, part, Budget(macs=0.6)).keep


def test_damage_is_monotone_and_goes_through_what_was_measured() -> None:
    curve = WidthCurve(tuple(range(16)), (4, 8, 12, 16), (0.8, 0.3, 0.35, 0.0))
    values = curve.at(np.arange(1, 17))
    assert (np.diff(values) <= 1e-12).all()
    assert values[[3, 7, 11, 15]].tolist() == pytest.approx([0.8, 0.35, 0.35, 0.0])
    assert values[0] == pytest.approx(0.8 + 3 * (0.8 - 0.35) / 4)


@pytest.mark.parametrize(
    ("order", "widths", "damages"),
    [
        ((0, 1), (1,), (0.1,)),
        ((0, 0), (2,), (0.0,)),
        ((0, 1), (2, 1), (0.0, 0.0)),
        ((0, 1), (1, 2), (float("nan"), 0.0)),
    ],
)
def test_impossible_curves_are_refused(
    order: tuple[int, ...], widths: tuple[int, ...], damages: tuple[float, ...]
) -> None:
    with pytest.raises(UsageError, match="a width curve needs"):
        WidthCurve(order, widths, damages)


def test_what_is_no_stored_curve_is_refused() -> None:
    with pytest.raises(UsageError, match="not width curves"):
        WidthCurves.from_dict({"curves": {"a": 3}, "divergence": "kl", "unmeasured": {}})
