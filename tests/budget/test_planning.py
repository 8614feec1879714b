from __future__ import annotations

import itertools
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from secateur.budget import Budget, Widths, make_plan, reachable
from secateur.criteria import Scores
from secateur.errors import BudgetError, UsageError
from secateur.graph.costs import Cost
from secateur.plan import PruningPlan
from tests.fakes import FakeGraph, Layer, chain, graphs

QUANTITIES = ("macs", "params", "memory", "channels")


@st.composite
def scored(draw: st.DrawFn, frozen: bool = True) -> tuple[FakeGraph, dict[str, list[float]]]:
    """A graph with scores of which many are equal."""
    graph = draw(graphs(frozen=frozen))
    number = st.integers(0, 4).map(float)
    return graph, {
        group.name: draw(st.lists(number, min_size=group.channels, max_size=group.channels))
        for group in graph.prunable
    }


def needs(graph: FakeGraph, plan: PruningPlan, back: dict[str, int] | None = None) -> dict[str, int]:
    """What a plan needs when some groups get channels back, by quantity."""
    widths = {name: len(kept) for name, kept in plan.keep.items()}
    for name, count in (back or {}).items():
        widths[name] += count
    channels = sum(widths.get(group.name, group.channels) for group in graph.prunable)
    return {**asdict(graph.cost(widths)), "channels": channels}


def meets(found: dict[str, int], budget: Budget, graph: FakeGraph) -> bool:
    return all(found[name] <= most for name, most in budget.amounts(graph).items())


def step_up(width: int, whole: int, multiple: int) -> int:
    """How many channels come back at once."""
    return min(width // multiple * multiple + multiple, whole) - width


def drawn_budget(data: st.DataObject, graph: FakeGraph, widths: Widths | None = None) -> Budget:
    """Up to three limits, each somewhere between the least that can be reached and the whole."""
    least, now = (asdict(cost) for cost in reachable(graph, widths=widths))
    names = data.draw(st.sets(st.sampled_from(QUANTITIES[:3]), min_size=1, max_size=3))
    return Budget(**{name: data.draw(st.integers(max(1, least[name]), max(1, now[name]))) for name in names})


@given(scored(), st.data())
def test_exactly_n_channels_go(case: tuple[FakeGraph, dict[str, list[float]]], data: st.DataObject):
    graph, scores = case
    total = sum(group.channels for group in graph.prunable)
    removed = data.draw(st.integers(0, total - len(graph.prunable)))
    assume(total > removed)
    plan = make_plan(graph, scores, Budget(channels=total - removed))
    assert plan.channels_removed == removed


@given(scored(), st.data())
def test_limits_are_met_and_nothing_can_come_back(
    case: tuple[FakeGraph, dict[str, list[float]]], data: st.DataObject
):
    graph, scores = case
    widths = Widths(multiple_of=data.draw(st.integers(1, 4)), min_channels=data.draw(st.integers(1, 4)))
    budget = drawn_budget(data, graph, widths)
    allocation = data.draw(st.sampled_from(["global", "uniform"]))
    plan = make_plan(graph, scores, budget, allocation=allocation, widths=widths)
    assert meets(needs(graph, plan), budget, graph)
    for name, kept in plan.keep.items():
        whole = graph[name].channels
        assert len(kept) >= min(widths.min_channels, whole)
        assert len(kept) % widths.multiple_of == 0
        back = needs(graph, plan, {name: step_up(len(kept), whole, widths.multiple_of)})
        assert not meets(back, budget, graph), f"channels of {name} could come back"


@given(scored(), st.data())
def test_predicted_cost_is_counted_cost(case: tuple[FakeGraph, dict[str, list[float]]], data: st.DataObject):
    graph, scores = case
    plan = make_plan(graph, scores, drawn_budget(data, graph))
    assert plan.cost_after == graph.counted(plan)
    assert plan.cost_before == graph.counted(PruningPlan(graph, {}))


def by_hand(graph: FakeGraph, scores: dict[str, list[float]], budget: Budget) -> dict[str, tuple[int, ...]]:
    """The plan by taking channels one at a time, and trying one at a time to put them back."""
    queue = sorted(
        (scores[group.name][channel], number, channel, group.name)
        for number, group in enumerate(graph.groups)
        if group.prunable
        for channel in range(group.channels)
    )
    kept = {group.name: set(range(group.channels)) for group in graph.prunable}

    def fits() -> bool:
        keep = {name: tuple(channels) for name, channels in kept.items()}
        return meets(needs(graph, PruningPlan(graph, keep)), budget, graph)

    gone = []
    for _, _, channel, name in queue:
        if fits():
            break
        if len(kept[name]) > 1:
            kept[name].remove(channel)
            gone.append((channel, name))
    for channel, name in reversed(gone):
        kept[name].add(channel)
        if not fits():
            kept[name].remove(channel)
    whole = {group.name: group.channels for group in graph.prunable}
    return {name: tuple(sorted(left)) for name, left in kept.items() if len(left) < whole[name]}


@given(scored(), st.data())
def test_equals_the_choice_by_hand(case: tuple[FakeGraph, dict[str, list[float]]], data: st.DataObject):
    graph, scores = case
    budget = drawn_budget(data, graph)
    plan = make_plan(graph, scores, budget, normalize="none")
    assert dict(plan.keep) == by_hand(graph, scores, budget)


@given(scored(), st.data(), st.randoms(use_true_random=False))
def test_the_order_of_a_mapping_and_its_types_do_not_matter(
    case: tuple[FakeGraph, dict[str, list[float]]], data: st.DataObject, random: Any
):
    graph, scores = case
    budget = drawn_budget(data, graph)
    names = list(scores)
    random.shuffle(names)
    kinds = [
        torch.tensor,
        tuple,
        lambda values: torch.tensor(values, dtype=torch.bfloat16, requires_grad=True),
        lambda values: np.array(values, dtype=np.float16),
        lambda values: [int(value) for value in values],
    ]
    shuffled = {name: random.choice(kinds)(scores[name]) for name in names}
    assert make_plan(graph, scores, budget) == make_plan(graph, shuffled, budget)


@given(scored(), st.data())
def test_scores_decide_within_groups(case: tuple[FakeGraph, dict[str, list[float]]], data: st.DataObject):
    graph, scores = case
    for name, gone in make_plan(graph, scores, drawn_budget(data, graph)).removed.items():
        kept = sorted(set(range(graph[name].channels)) - set(gone))
        # Of equal scores the first channels go.
        assert max((scores[name][c], c) for c in gone) < min((scores[name][c], c) for c in kept)


def test_lowest_normalised_scores_go_over_all_groups():
    graph = chain(4, 4)
    scores = {"g0": [3.0, 1.0, 2.0, 4.0], "g1": [30.0, 5.0, 40.0, 20.0]}
    assert make_plan(graph, scores, Budget(channels=5)).removed == {"g0": (1, 2), "g1": (1,)}
    assert make_plan(graph, scores, Budget(channels=5), normalize="none").removed == {"g0": (0, 1, 2)}
    assert make_plan(graph, scores, Budget(channels=5), normalize="max").removed == {"g0": (1, 2), "g1": (1,)}


def test_ties_go_by_group_and_channel():
    graph = chain(3, 3, 3)
    flat = {name: [1.0] * 3 for name in ("g0", "g1", "g2")}
    assert make_plan(graph, flat, Budget(channels=6)).removed == {"g0": (0, 1), "g1": (0,)}


def test_channels_that_turn_out_cheap_come_back():
    # The last two of the order are needed, and make the first one (far cheaper) needless.
    graph = FakeGraph((3, 3), frozenset(), (Layer(0, (), 1, 1), Layer(1, (), 1, 100)))
    scores = {"g0": [1.0, 5.0, 6.0], "g1": [2.0, 3.0, 9.0]}
    plan = make_plan(graph, scores, Budget(macs=2 * 100 + 3), normalize="none")
    assert plan.removed == {"g1": (0,)}


def test_several_limits_together():
    # g0 is cheap in parameters and dear in MACs, g1 the reverse.
    graph = FakeGraph((10, 10), frozenset(), (Layer(0, (), 1, 100), Layer(1, (), 100, 1)))
    scores = {"g0": list(range(1, 11)), "g1": list(range(1, 11))}
    both = make_plan(graph, scores, Budget(macs=1500, params=600))
    assert both.cost_after.macs <= 1500
    assert both.cost_after.params <= 600
    only_macs = make_plan(graph, scores, Budget(macs=1500))
    assert only_macs.cost_after.params > 600


def test_a_budget_that_is_met_removes_nothing():
    graph = chain(4, 4, frozen=frozenset({1}))
    scores = {"g0": [1, 2, 3, 4]}
    for budget in (Budget(macs=10**9), Budget(macs=10**9, params=10**9), Budget(channels=4)):
        assert make_plan(graph, scores, budget).keep == {}


def test_rounded_units_are_ranked_by_their_mean():
    graph = chain(8, 8)
    scores = {"g0": [1, 1, 1, 9, 9, 9, 9, 9], "g1": [2, 2, 2, 2, 9, 9, 9, 9]}
    plan = make_plan(graph, scores, Budget(channels=12), normalize="none", widths=Widths(multiple_of=4))
    assert plan.removed == {"g1": (0, 1, 2, 3)}  # mean 2, against a mean of 3
    plan = make_plan(graph, scores, Budget(channels=13), normalize="none")
    assert plan.removed == {"g0": (0, 1, 2)}


def test_uneven_widths_are_rounded_first():
    graph = chain(11)
    fours = Widths(multiple_of=4)
    plans = [make_plan(graph, {"g0": range(11)}, Budget(channels=n), widths=fours) for n in range(4, 12)]
    widths = {len(plan.keep.get("g0", range(11))) for plan in plans}
    assert widths == {4, 8, 11}


def test_floors_caps_and_ignore():
    graph = chain(10, 10, 10)
    scores = {name: range(10) for name in ("g0", "g1", "g2")}
    plan = make_plan(
        graph, scores, Budget(channels=22), widths=Widths(floors={"g0": 9}, caps={"g1": 0.3}, ignore="g2")
    )
    assert plan.removed == {"g0": (0,), "g1": (0, 1, 2, 3, 4, 5, 6)}
    with pytest.raises(BudgetError):
        make_plan(
            graph,
            scores,
            Budget(channels=15),
            widths=Widths(floors={"g0": 9}, min_channels=2, ignore=["g1", "g2"]),
        )


def test_caps_hold_whatever_the_budget_leaves():
    graph = chain(10, 10)
    scores = {"g0": range(10), "g1": range(10)}
    plan = make_plan(graph, scores, Budget(macs=10**6), widths=Widths(caps={"g0": 4}))
    assert plan.removed == {"g0": (0, 1, 2, 3, 4, 5)}
    assert make_plan(graph, scores, Budget(macs=10**6), widths=Widths(caps=0.5, ignore=["g0"])).removed == {
        "g1": (0, 1, 2, 3, 4)
    }


@given(scored(frozen=False), st.data())
def test_caps_and_floors_always_hold(case: tuple[FakeGraph, dict[str, list[float]]], data: st.DataObject):
    graph, scores = case
    floors = {g.name: data.draw(st.integers(1, g.channels)) for g in graph.groups}
    caps = {g.name: data.draw(st.integers(floors[g.name], g.channels)) for g in graph.groups}
    budget = drawn_budget(data, graph, Widths(floors=floors, caps=caps))
    plan = make_plan(graph, scores, budget, widths=Widths(floors=floors, caps=caps))
    assert meets(needs(graph, plan), budget, graph)
    for group in graph.groups:
        width = len(plan.keep.get(group.name, range(group.channels)))
        assert floors[group.name] <= width <= caps[group.name]
        if width < caps[group.name]:
            assert not meets(needs(graph, plan, {group.name: 1}), budget, graph)


def test_uniform_allocation_takes_the_same_share_everywhere():
    graph = chain(8, 16, 4)
    scores = {"g0": torch.rand(8), "g1": 1e6 * torch.rand(16), "g2": 1e-6 * torch.rand(4)}
    plan = make_plan(graph, scores, Budget(channels=0.5), allocation="uniform")
    assert {name: len(kept) for name, kept in plan.keep.items()} == {"g0": 4, "g1": 8, "g2": 2}


@given(graphs(max_width=30), st.integers(1, 99), st.integers(1, 5), st.integers(1, 3))
def test_uniform_shares_are_rounded_down_in_each_group(
    graph: FakeGraph, percent: int, multiple: int, least: int
):
    scores = {group.name: range(group.channels) for group in graph.prunable}
    widths = Widths(multiple_of=multiple, min_channels=least)
    plan = make_plan(graph, scores, Budget(channels=percent / 100), allocation="uniform", widths=widths)
    for group in graph.groups:
        fits = [w for w in range(1, group.channels + 1) if w == group.channels or w % multiple == 0]
        fits = [w for w in fits if w >= min(least, group.channels)]
        target = max(1, group.channels * percent // 100)
        wanted = max((w for w in fits if w <= target), default=fits[0]) if group.prunable else group.channels
        kept = plan.keep.get(group.name, range(group.channels))
        assert list(kept) == list(range(group.channels))[group.channels - wanted :]


def test_a_uniform_share_holds_beside_other_limits():
    graph = chain(8, 16, 4)
    scores = {name: range(width) for name, width in (("g0", 8), ("g1", 16), ("g2", 4))}
    plan = make_plan(graph, scores, Budget(channels=0.5, macs=60), allocation="uniform")
    assert plan.cost_after.macs <= 60
    assert all(len(plan.keep[name]) <= len(scores[name]) // 2 for name in scores)


@given(graphs(), st.integers(1, 4))
def test_reachable_is_the_least_of_all_plans(graph: FakeGraph, least: int):
    assume(math.prod(group.channels for group in graph.prunable) < 300)
    ranges = [
        range(min(least, group.channels), group.channels + 1) if group.prunable else [group.channels]
        for group in graph.groups
    ]
    costs = [graph.cost_model.cost(np.array(widths)) for widths in itertools.product(*ranges)]
    low, now = reachable(graph, widths=Widths(min_channels=least))
    assert now == graph.cost()
    assert asdict(low) == {name: min(getattr(cost, name) for cost in costs) for name in asdict(low)}


def test_an_impossible_budget_says_what_is_possible():
    graph = chain(10, 10, frozen=frozenset({1}))
    scores = {"g0": range(10)}
    with pytest.raises(BudgetError) as caught:
        make_plan(graph, scores, Budget(macs=0.05, params=150, channels=1))
    assert str(caught.value) == (
        "no plan meets the budget. "
        "MACs: at most 6 (4.62%) may remain, but the least possible is 13 (10.00%); "
        "parameters: at most 150 (100.00%) may remain, and the least possible is 24 (16.00%); "
        "channels: at most 1 (10.00%) may remain, and the least possible is 1 (10.00%). "
        "The frozen groups and one channel of every prunable group already need that much"
    )


@pytest.mark.parametrize(
    ("rules", "cause"),
    [
        ({"min_channels": 3}, r"It is limited by min_channels \(without: 1 channels\)"),
        ({"floors": 0.3}, r"It is limited by floors \(without: 1 channels\)"),
        ({"multiple_of": 4}, r"It is limited by multiple_of \(without: 1 channels\)"),
        ({"ignore": "g0"}, r"It is limited by ignore \(without: 1 channels\)"),
        (
            {"min_channels": 3, "floors": 3},
            r"It is limited by min_channels and floors together \(without: 1 channels\)",
        ),
        ({"min_channels": 4, "floors": 2}, r"It is limited by min_channels \(without: 2 channels\)"),
    ],
)
def test_an_impossible_budget_names_the_rules_in_the_way(rules: dict[str, Any], cause: str):
    with pytest.raises(BudgetError, match=cause):
        make_plan(chain(10), {"g0": range(10)}, Budget(channels=1), widths=Widths(**rules))


@given(scored(), st.data())
def test_an_impossible_budget_is_refused_exactly_below_the_least(
    case: tuple[FakeGraph, dict[str, list[float]]], data: st.DataObject
):
    graph, scores = case
    name = data.draw(st.sampled_from(QUANTITIES[:3]))
    least = getattr(reachable(graph)[0], name)
    assert getattr(make_plan(graph, scores, Budget(**{name: least})).cost_after, name) == least
    if least > 1:
        with pytest.raises(BudgetError, match=f"the least possible is {least:,} "):
            make_plan(graph, scores, Budget(**{name: least - 1}))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "no scores for group 'g0'"),
        ({"g0": [1, 2]}, r"group 'g0' has 3 channels, its scores have shape \(2,\)"),
        ({"g0": torch.ones(3, 1)}, r"group 'g0' has 3 channels, its scores have shape \(3, 1\)"),
        ({"g0": 1.0}, r"group 'g0' has 3 channels, its scores have shape \(\)"),
        ({"g0": [1, math.nan, 2]}, "score of channel 1 of group 'g0' is nan"),
        ({"g0": torch.tensor([1, 2, math.inf])}, "score of channel 2 of group 'g0' is inf"),
        ({"g0": ["a", "b", "c"]}, "scores of group 'g0' are not real numbers"),
        ({"g0": [1, 2, 3], "h": [1]}, "no channel group 'h'"),
    ],
)
def test_unfit_scores(scores: dict[str, Any], message: str):
    for plan in (
        lambda: make_plan(chain(3), scores, Budget(channels=2)),
        lambda: make_plan(chain(3), scores, Budget(channels=0.5), allocation="uniform"),
    ):
        with pytest.raises(UsageError, match=message):
            plan()


def test_scores_of_groups_that_stay_whole_are_not_looked_at():
    graph = chain(3, 3, 3, frozen=frozenset({1}))
    scores = {"g0": [1, 2, 3], "g1": "nonsense"}
    assert make_plan(graph, scores, Budget(channels=5), widths=Widths(ignore=["g2"])).removed == {"g0": (0,)}


def test_groups_that_a_criterion_could_not_value_stay_whole():
    graph = chain(3, 3)
    scores = Scores("bn-scale", {"g1": torch.tensor([3.0, 1.0, 2.0])}, {"g0": "it has no batch norm"})
    assert make_plan(graph, scores, Budget(channels=4)).removed == {"g1": (1, 2)}
    uniform = make_plan(graph, scores, Budget(channels=0.4), allocation="uniform")
    assert uniform.removed == {"g1": (1, 2)}
    with pytest.raises(BudgetError, match=r"It is limited by groups without scores \(without: 2 channels\)"):
        make_plan(graph, scores, Budget(channels=3))


def test_unknown_kinds():
    graph, scores = chain(3), {"g0": [1, 2, 3]}
    with pytest.raises(UsageError, match="unknown allocation 'local': choose one of global, uniform, curves"):
        make_plan(graph, scores, Budget(channels=2), allocation="local")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Unknown normalisation 'l7'"):
        make_plan(graph, scores, Budget(channels=2), normalize="l7")
    with pytest.raises(UsageError, match="allocation='curves' needs width curves"):
        make_plan(graph, scores, Budget(channels=2), allocation="curves")
    with pytest.raises(UsageError, match="latency"):
        make_plan(graph, scores, Budget(latency=0.5))


def test_a_graph_without_prunable_groups():
    graph = chain(3, frozen=frozenset({0}))
    assert make_plan(graph, {}, Budget(channels=0.5)).keep == {}
    with pytest.raises(BudgetError, match="The frozen groups"):
        make_plan(graph, {}, Budget(macs=0.5))
    assert reachable(graph) == (Cost(12, 9, 48, 24),) * 2
