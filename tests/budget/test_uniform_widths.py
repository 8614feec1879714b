"""One width for all groups of a kind, compared with trying all widths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.budget import Budget, WidthCurve, WidthCurves, Widths, make_plan
from secateur.budget.ties import kinds_of
from secateur.errors import BudgetError, UsageError
from secateur.graph import ChannelGraph, trace
from secateur.surgery import apply_plan

LAYERS, WIDTH, HIDDEN = 3, 4, 6


class Layer(nn.Module):
    """A residual MLP with a second narrow part."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.left, self.right = nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(self.up(x).relu())
        return x + self.right(self.left(x).tanh())


def traced() -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    net = nn.Sequential(*(Layer() for _ in range(LAYERS)), nn.Linear(WIDTH, 3)).eval()
    return net, trace(net, torch.randn(2, WIDTH))


NET, GRAPH = traced()
UP = [f"{layer}.up" for layer in range(LAYERS)]
LEFT = [f"{layer}.left" for layer in range(LAYERS)]


def curves_of(damages: np.ndarray, branches: bool = False) -> WidthCurves:
    """Curves with a damage for every width, from random steps of shape (2 · LAYERS, HIDDEN)."""
    found = {}
    for name, steps in zip([*UP, *LEFT], damages, strict=True):
        count = GRAPH[name].channels
        rising = (*np.cumsum(steps[: count - 1])[::-1].tolist(), 0.0)
        found[name] = WidthCurve(tuple(range(count)), tuple(range(1, count + 1)), rising)
    absent = {branch.name: 0.01 for branch in GRAPH.branches} if branches else {}
    return WidthCurves(found, "mse", {}, absent)


def widths_of(plan: object, names: list[str]) -> set[int]:
    removed = plan.removed  # type: ignore[attr-defined]
    return {GRAPH[name].channels - len(removed.get(name, ())) for name in names}


def params(up: int, left: int) -> int:
    each = WIDTH * up + up + up * WIDTH + WIDTH + WIDTH * left + left + left * WIDTH + WIDTH
    return LAYERS * each + WIDTH * 3 + 3


def test_groups_of_a_kind_differ_in_numbers_only() -> None:
    kind = dict(zip([group.name for group in GRAPH.groups], kinds_of(GRAPH).tolist(), strict=True))
    assert len({kind[name] for name in UP}) == len({kind[name] for name in LEFT}) == 1
    assert kind[UP[0]] != kind[LEFT[0]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.45, 0.95))
def test_curves_give_the_least_summed_damage_of_all_uniform_widths(seed: int, share: float) -> None:
    curves = curves_of(np.random.default_rng(seed).uniform(0.05, 1.0, (2 * LAYERS, HIDDEN)))
    limit = int(share * params(HIDDEN, 2))
    plan = make_plan(GRAPH, curves, Budget(params=limit), widths=Widths(uniform_widths=True))
    ups, lefts = widths_of(plan, UP), widths_of(plan, LEFT)
    assert len(ups) == len(lefts) == 1

    def damage(up: int, left: int) -> float:
        return sum(curves[name].damages[up - 1] for name in UP) + sum(
            curves[name].damages[left - 1] for name in LEFT
        )

    best = min(
        damage(up, left)
        for up, left in itertools.product(range(1, HIDDEN + 1), (1, 2))
        if params(up, left) <= limit
    )
    found = damage(ups.pop(), lefts.pop())
    assert plan.cost_after.params <= limit
    assert found == pytest.approx(best)


def test_many_widths_of_few_kinds_use_up_the_budget() -> None:
    """One more channel in every layer would be beyond the limit, also where groups have hundreds."""

    def layer() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 300), nn.ReLU(), nn.Linear(300, WIDTH))

    net = nn.Sequential(*(layer() for _ in range(4))).eval()
    graph = trace(net, torch.randn(2, WIDTH))
    hidden = np.linspace(15, 300, 20, dtype=int).tolist()
    wide = WidthCurve(tuple(range(300)), tuple(hidden), tuple(np.linspace(2, 0, 20).tolist()))
    thin = WidthCurve(tuple(range(WIDTH)), (1, 2, 3, WIDTH), (1e6, 1e6, 1e6, 0.0))
    curves = WidthCurves(
        {group.name: wide if group.channels == 300 else thin for group in graph.prunable}, "mse"
    )
    limit = int(0.637 * graph.cost().params)
    plan = make_plan(graph, curves, Budget(params=limit), widths=Widths(uniform_widths=True))
    assert len(plan.keep) == 4
    assert len({len(kept) for kept in plan.keep.values()}) == 1
    assert limit - 4 * (2 * WIDTH + 1) < plan.cost_after.params <= limit


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["global", "uniform"]), st.floats(0.45, 0.95))
def test_scores_give_every_layer_the_same_widths_and_no_wider_ones_fit(
    seed: int, allocation: str, share: float
) -> None:
    rng, limit = np.random.default_rng(seed), int(share * params(HIDDEN, 2))
    scores = {name: rng.uniform(0, 1, GRAPH[name].channels) for name in [*UP, *LEFT]}
    plan = make_plan(
        GRAPH,
        scores,
        Budget(params=limit),
        widths=Widths(uniform_widths=True),
        allocation=allocation,  # type: ignore[arg-type]
    )
    (up,), (left,) = widths_of(plan, UP), widths_of(plan, LEFT)
    assert params(up, left) <= limit
    assert up == HIDDEN or params(up + 1, left) > limit
    assert left == 2 or params(up, left + 1) > limit
    for name in UP:  # each layer loses its own channels of lowest score
        gone = plan.removed.get(name, ())
        assert sorted(gone) == sorted(np.argsort(scores[name])[: HIDDEN - up].tolist())
    assert sum(item.numel() for item in apply_plan(NET, plan).parameters()) == params(up, left)


def test_a_layer_that_stays_whole_keeps_its_kind_whole() -> None:
    curves = curves_of(np.full((2 * LAYERS, HIDDEN), 0.1))
    widths = Widths(uniform_widths=True, ignore=[UP[1]])
    plan = make_plan(GRAPH, curves, Budget(params=params(HIDDEN, 1)), widths=widths)
    assert (widths_of(plan, UP), widths_of(plan, LEFT)) == ({HIDDEN}, {1})
    with pytest.raises(BudgetError, match="limited by .*uniform_widths"):
        make_plan(GRAPH, curves, Budget(params=params(HIDDEN, 1) - 1), widths=widths)


def test_bounds_that_contradict_each_other_are_refused() -> None:
    curves = curves_of(np.full((2 * LAYERS, HIDDEN), 0.1))
    widths = Widths(uniform_widths=True, floors={UP[0]: 5}, caps={UP[2]: 4})
    with pytest.raises(UsageError, match=r"'0\.up' and '1\.up', have no width in common"):
        make_plan(GRAPH, curves, Budget(params=0.7), widths=widths)


def test_branches_go_with_curves_only() -> None:
    curves = curves_of(np.full((2 * LAYERS, HIDDEN), 1.0), branches=True)
    widths = Widths(uniform_widths=True, depth="auto")
    plan = make_plan(GRAPH, curves, Budget(params=0.6), widths=widths)
    there = [
        name for name in UP if name in {group.name for group in GRAPH.after(plan).groups if group.channels}
    ]
    assert plan.without  # a branch costs 0.01, a channel of any kind at least three times 1.0
    assert len({len(plan.removed.get(name, ())) for name in there}) <= 1
    with pytest.raises(UsageError, match="need width curves"):
        make_plan(
            GRAPH, {name: [1.0] * GRAPH[name].channels for name in curves}, Budget(params=0.6), widths=widths
        )
