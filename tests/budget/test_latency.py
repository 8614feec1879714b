"""Budgets in milliseconds, on a device whose times are a law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.budget import Budget, WidthCurve, WidthCurves, Widths, forecast, make_plan
from secateur.budget.choice_space import ChoiceSpace
from secateur.budget.limits import CostEvaluator
from secateur.errors import BudgetError, UsageError
from secateur.graph.groups import IntArray
from tests.fakes import FakeGraph, chain, graphs


class Device:
    """Steps of some width, a price per group, and some time that no plan can save."""

    def __init__(
        self, prices: tuple[float, ...], step: int = 1, fixed: float = 0.0, odd: float = 0.0
    ) -> None:
        self.prices, self.step, self.fixed, self.odd = prices, step, fixed, odd

    def milliseconds(self, widths: IntArray) -> np.ndarray:
        steps = np.ceil(widths / self.step) * self.step
        slower = self.odd * (widths % 2)  # some devices run odd widths slower than wider even ones
        return (np.array(self.prices) * (steps + slower)).sum(-1) + self.fixed


def scores(graph: FakeGraph) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    return {group.name: rng.uniform(0.1, 1, group.channels).tolist() for group in graph.groups}


def curves(graph: FakeGraph) -> WidthCurves:
    rng = np.random.default_rng(1)
    return WidthCurves(
        {
            group.name: WidthCurve(
                tuple(range(group.channels)),
                tuple(range(1, group.channels + 1)),
                (*np.cumsum(rng.uniform(0.1, 1, group.channels - 1))[::-1].tolist(), 0.0),
            )
            for group in graph.prunable
        },
        "kl",
    )


@st.composite
def devices(draw: st.DrawFn, graph: FakeGraph) -> Device:
    count = len(graph.groups)
    prices = draw(st.lists(st.floats(0.01, 2), min_size=count, max_size=count))
    return Device(
        tuple(prices), draw(st.sampled_from([1, 4])), draw(st.floats(0, 3)), draw(st.sampled_from([0.0, 1.5]))
    )


@settings(max_examples=60)
@given(
    st.data(), graphs(max_width=20), st.floats(0.3, 0.99), st.sampled_from(["global", "uniform", "curves"])
)
def test_every_plan_keeps_to_all_limits_or_there_is_none(
    data: st.DataObject, graph: FakeGraph, share: float, way: str
) -> None:
    device = data.draw(devices(graph))
    budget = Budget(latency=share, params=data.draw(st.sampled_from([None, 0.6])))
    ranking = curves(graph) if way == "curves" else scores(graph)
    least = np.where([group.prunable for group in graph.groups], 1, [g.channels for g in graph.groups])
    space = ChoiceSpace.of(graph)  # type: ignore[arg-type]
    meter = CostEvaluator(space, budget.amounts(graph, device), device)  # type: ignore[arg-type]
    arguments = {} if way == "curves" else {"allocation": way}
    if not meter.within(least):
        with pytest.raises(BudgetError, match="least possible"):
            make_plan(graph, ranking, budget, latency=device, **arguments)  # type: ignore[arg-type]
        return
    plan = make_plan(graph, ranking, budget, latency=device, **arguments)  # type: ignore[arg-type]
    widths = np.array([len(plan.keep.get(g.name, range(g.channels))) for g in graph.groups])
    assert meter.within(widths)
    now = float(device.milliseconds(np.array([group.channels for group in graph.groups])))
    assert float(device.milliseconds(widths)) <= share * now + 1e-6


def test_time_is_saved_where_it_is_spent() -> None:
    """Two groups alike in MACs and scores: the one that the device runs slowly is cut."""
    graph = chain(40, 40)
    even = {"g0": [1.0] * 40, "g1": [1.0] * 40}
    damage = WidthCurve(tuple(range(40)), tuple(range(1, 41)), tuple(np.arange(39, -1, -1) * 0.1))
    both = WidthCurves({"g0": damage, "g1": damage}, "kl")
    slow_first = make_plan(graph, both, Budget(latency=0.6), latency=Device((5.0, 0.1)))
    assert len(slow_first.keep["g0"]) < 26
    assert "g1" not in slow_first.keep
    plan = make_plan(graph, even, Budget(latency="20 ms"), latency=Device((1.0, 0.0)))
    assert len(plan.keep["g0"]) == 20
    assert "g1" not in plan.keep  # cutting it would have saved nothing


@pytest.mark.parametrize("way", ["scores", "curves"])
def test_automatic_rounding_takes_the_ends_of_steps(way: str) -> None:
    graph = chain(64, 48)
    device = Device((1.0, 1.0), step=8)
    ranking = scores(graph) if way == "scores" else curves(graph)
    plan = make_plan(graph, ranking, Budget(latency=0.5), latency=device, widths=Widths(multiple_of="auto"))
    assert all(len(kept) % 8 == 0 for kept in plan.keep.values())
    assert plan.keep


def test_an_impossible_time_says_what_the_least_is() -> None:
    graph = chain(10, 10)
    device = Device((1.0, 1.0), fixed=80.0)
    with pytest.raises(
        BudgetError, match=r"milliseconds: at most 50 ms \(50.00%\) may remain, but the least .* 82 ms"
    ):
        make_plan(graph, scores(graph), Budget(latency=0.5), latency=device)
    with pytest.raises(BudgetError, match="It is limited by min_channels \\(without: 82 ms\\)"):
        make_plan(
            graph, scores(graph), Budget(latency="85 ms"), latency=device, widths=Widths(min_channels=5)
        )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (0.5, "at most 50% of the milliseconds"),
        (np.float32(0.3), "at most 30% of the milliseconds"),
        ("12 ms", "at most 12 ms"),
        ("12.5 ms", "at most 12.5 ms"),
        ("800us", "at most 0.8 ms"),
        ("1.5 s", "at most 1500 ms"),
        (" 0.25MS", "at most 0.25 ms"),
    ],
)
def test_what_is_a_share_and_what_a_time(given: float | str, words: str) -> None:
    budget = Budget(latency=given)
    assert str(budget) == words
    assert Budget(latency=budget.latency) == budget


NEITHER = [
    1,
    12,
    12.5,
    1.0,
    np.int64(3),
    0,
    -1,
    0.0,
    -0.5,
    True,
    float("nan"),
    float("inf"),
    "fast",
    "0.5",
    "12",
    "0 ms",
    "-1 ms",
    [1],
]


@pytest.mark.parametrize("bad", NEITHER)
def test_everything_else_is_refused(bad: object) -> None:
    with pytest.raises(UsageError, match=r"latency: .* neither a share nor a time; write Budget\(latency="):
        Budget(latency=bad)  # type: ignore[arg-type]


def test_a_bare_number_is_answered_with_the_time_that_is_meant() -> None:
    with pytest.raises(UsageError, match=r'write Budget\(latency="12 ms"\) for a time'):
        Budget(latency=12)  # type: ignore[arg-type]


def test_nothing_that_tells_the_time() -> None:
    graph = chain(5)
    for arguments in (
        {"budget": Budget(latency=0.5)},
        {"budget": Budget(macs=0.5), "widths": Widths(multiple_of="auto")},
    ):
        with pytest.raises(UsageError, match="latency_table"):
            make_plan(graph, scores(graph), **arguments)  # type: ignore[arg-type]
    assert "latency" not in CostEvaluator(ChoiceSpace.of(graph), {}).original  # type: ignore[arg-type]


def test_a_forecast_says_what_is_reachable_and_what_a_plan_would_cost() -> None:
    graph, device = chain(10, 20), Device((1.0, 2.0), fixed=10.0)
    found = forecast(graph, Budget(latency=0.5, macs=0.8), scores(graph), latency=device)  # type: ignore[arg-type]
    assert found.plan is not None
    assert found.impossible is None
    time = found.reach["latency"]
    assert (time.now, time.least, time.allowed) == (60_000_000, 13_000_000, 30_000_000)
    assert time.planned == round(float(device.milliseconds(found.plan.widths)) * 1e6) <= 30_000_000
    plain = found.to_dict()["reach"]
    assert plain["latency"]["now"] == 60.0
    assert plain["macs"]["planned"] == graph.cost({k: len(v) for k, v in found.plan.keep.items()}).macs
    assert "latency" in str(found)


def test_a_forecast_of_the_impossible_says_why() -> None:
    graph = chain(10, 20)
    found = forecast(graph, Budget(latency=0.1), scores(graph), latency=Device((1.0, 2.0), fixed=10.0))  # type: ignore[arg-type]
    assert found.plan is None
    assert "the least possible is 13 ms" in str(found)
    assert found.reach["latency"].planned is None


def test_where_narrow_is_slow_the_least_time_is_that_of_the_whole() -> None:
    """One channel takes a step of two and the surcharge of odd widths, two channels the step alone."""
    graph, device = chain(2), Device((1.0,), step=2, odd=1.5)
    found = forecast(graph, Budget(latency=0.5), scores(graph), latency=device)  # type: ignore[arg-type]
    assert found.reach["latency"].least == found.reach["latency"].now == 2_000_000
    assert "the least possible is 2 ms (100.00%)" in str(found)


def test_a_forecast_without_a_budget_is_only_what_is_reachable() -> None:
    found = forecast(chain(10, 20))  # type: ignore[arg-type]
    assert found.plan is None
    assert all(reach.least <= reach.now and reach.planned is None for reach in found.reach.values())
    assert "allowed" not in str(found)
