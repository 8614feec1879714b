from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sec
from secateur.budget.feasible import feasible_widths
from secateur.budget.widths import Widths
from secateur.errors import BudgetError, UsageError
from secateur.graph import trace
from tests.fakes import FakeGraph, chain, graphs


def allowed(width: int, step: int, low: int, high: int) -> list[int]:
    """All widths that the rules allow, by trying each."""
    fits = [w for w in range(1, width + 1) if w == width or w % step == 0]
    return [w for w in fits if min(low, width) <= w <= high]


@given(graphs(max_width=30), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_widths_are_those_of_a_search(graph: FakeGraph, step: int, least: int, floor: int):
    feasible = feasible_widths(graph, Widths(multiple_of=step, min_channels=least, floors=floor))
    for number, group in enumerate(graph.groups):
        widths = allowed(group.channels, step, max(least, floor), group.channels) if group.prunable else []
        reached = [group.channels, *(group.channels - np.cumsum(feasible.steps(number))).tolist()]
        assert reached == (sorted(widths, reverse=True) or [group.channels])
        assert feasible.least[number] == reached[-1]
        assert feasible.most[number] == group.channels


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.integers(1, 40))
def test_caps_are_those_of_a_search(width: int, step: int, floor: int, cap: int):
    rules = Widths(multiple_of=step, floors={"g0": floor}, caps={"g0": cap})
    widths = allowed(width, step, floor, max(1, min(cap, width)))
    if not widths:
        with pytest.raises(UsageError, match="no width is a multiple"):
            feasible_widths(chain(width), rules)
        return
    feasible = feasible_widths(chain(width), rules)
    assert (feasible.least[0], feasible.most[0]) == (widths[0], widths[-1])


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.integers(1, 50))
def test_the_width_below_a_target(width: int, step: int, floor: int, target: int):
    widths = allowed(width, step, floor, width)
    wanted = max((w for w in widths if w <= target), default=widths[0])
    assert (
        feasible_widths(chain(width), Widths(multiple_of=step, floors=floor)).below(np.array([target]))[0]
        == wanted
    )


def test_shares_round_floors_up_and_caps_down():
    feasible = feasible_widths(chain(7, 2), Widths(floors={"g0": 0.3}, caps={"*": 0.71}))
    assert feasible.least.tolist() == [3, 1]
    assert feasible.most.tolist() == [4, 1]


def test_the_strictest_of_several_bounds_holds():
    rules = Widths(floors={"*": 2, "g0": 4, "g[01]": 3}, caps={"*": 9, "g0": 6, "g1": 0.5})
    feasible = feasible_widths(chain(10, 10, 10), rules)
    assert feasible.least.tolist() == [4, 3, 2]
    assert feasible.most.tolist() == [6, 5, 9]


def test_one_bound_for_all_groups():
    feasible = feasible_widths(chain(10, 4, frozen=frozenset({1})), Widths(floors=2, caps=0.5))
    assert (feasible.least.tolist(), feasible.most.tolist()) == ([2, 4], [5, 4])


def test_ignore_by_group_module_and_pattern():
    graph = chain(10, 10, 10)

    def left_alone(ignore: object) -> list[int]:
        return np.flatnonzero(feasible_widths(graph, Widths(ignore=ignore)).least == 10).tolist()  # type: ignore[arg-type]

    assert left_alone("g1") == [1]
    assert left_alone(["g1", "l2"]) == [1, 2]  # l2 writes g2 and reads g1
    assert left_alone(["l2"]) == [2]
    assert left_alone(["l[01]"]) == [0, 1]
    assert left_alone(["l0.bias"]) == [0]
    assert left_alone(name for name in ("*2",)) == [2]
    assert left_alone([]) == []


def test_a_containing_module_stands_for_all_inside_it():
    net = nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)),
        nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)),
    )
    graph = trace(net, torch.zeros(1, 3))
    names = np.array([group.name for group in graph.groups])

    def left_alone(ignore: str) -> list[str]:
        feasible = feasible_widths(graph, Widths(ignore=ignore))
        return names[feasible.least == feasible.original].tolist()

    assert left_alone("0") == ["0.0", "0.2", "1.1"]
    assert left_alone("1") == ["1.0", "1.1"]
    assert left_alone("0.2") == ["0.2", "1.1"]
    assert left_alone("*") == names.tolist()


def test_names_that_do_not_exist():
    with pytest.raises(UsageError, match="ignore: no group or module 'l9'; did you mean 'l"):
        feasible_widths(chain(3, 3), Widths(ignore=["l9"]))
    for what in ("floors", "caps"):
        with pytest.raises(UsageError, match=f"{what}: no group 'q7'$"):
            feasible_widths(chain(3, 3), Widths(**{what: {"q7": 2}}))


@pytest.mark.parametrize("value", [0, -2, True, 1.5, "2", None])
def test_settings_out_of_range(value: object):
    for name in ("multiple_of", "min_channels"):
        with pytest.raises(UsageError, match=f"{name}: must be an integer of at least 1"):
            Widths(**{name: value})  # type: ignore[arg-type]


def test_bounds_out_of_range():
    with pytest.raises(UsageError, match="floors: 'g0': 1.5 is neither"):
        feasible_widths(chain(3), Widths(floors={"g0": 1.5}))
    with pytest.raises(UsageError, match="caps: 0 is neither"):
        feasible_widths(chain(3), Widths(caps=0))


@pytest.mark.parametrize("only", ["2", ["2"], ["2*"]])
def test_only_what_is_named_is_cut(only: str | list[str]) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = sec.trace(net, torch.zeros(1, 4))
    scores = {"0": range(8), "2": range(8)}
    widths = sec.Widths(only=only)
    half = sec.Budget(channels=0.5)
    uniform = sec.make_plan(graph, scores, half, allocation="uniform", widths=widths)
    assert uniform.removed == {"2": (0, 1, 2, 3)}
    plan = sec.make_plan(graph, scores, sec.Budget(channels=13), widths=widths)
    assert plan.removed == {"2": (0, 1, 2)}
    nothing = sec.Widths(only=only, ignore=only)
    assert sec.make_plan(graph, scores, half, allocation="uniform", widths=nothing).removed == {}
    with pytest.raises(BudgetError, match=r"It is limited by only \(without: 2 channels\)"):
        sec.make_plan(graph, scores, sec.Budget(channels=8), widths=widths)


def test_only_something_that_is_not_there_is_refused() -> None:
    graph = sec.trace(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4))
    with pytest.raises(UsageError, match="only: no group or module '7'"):
        sec.make_plan(graph, {"0": range(8)}, sec.Budget(channels=8), widths=sec.Widths(only="7"))
