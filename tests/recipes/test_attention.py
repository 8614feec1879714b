"""Which unit of attention a plan removes: whole heads, or query heads of shared keys and values."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.errors import BudgetError, UsageError
from secateur.recipes import Callback, Measured, Recipe, RecipeContext, Training, fingerprint, prune
from secateur.recipes.attention import curves_of_same_groups
from secateur.recipes.runner import run_recipe
from secateur.training.resume import Entry, Journal
from tests.graph.test_attention_units import Served

HEADS, SHARED, WIDTH = 4, 2, 4


class Layer(nn.Module):
    """One attention with two query heads for each of two key/value heads, of which some write nothing."""

    def __init__(self, idle: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.attention = nn.Linear(5, 16), Served(SHARED, HEADS)
        columns = self.attention.out.weight.detach().view(16, SHARED, HEADS // SHARED, WIDTH)
        rows = self.attention.q.weight.detach().view(SHARED, HEADS // SHARED, WIDTH, 16)
        place = {"heads": 0, "query_heads": 1}[idle]
        columns.select(place + 1, 1).zero_()
        rows.select(place, 1).mul_(0.1)  # so that the size of the weights shows which ones write nothing
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        return self.head((x + self.attention(x)).mean(1))


class Notes(Callback):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.scores: list[Any] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_scores(self, scores: Any) -> None:
        self.scores.append(scores)


X = torch.randn(8, 6, 5, generator=torch.Generator().manual_seed(1))
BATCHES = [(X, torch.arange(8) % 3)]
WIDTHS = sec.Widths(ignore=["inside", "head"])
KEPT = {"heads": (2, 1, 8, 4), "query_heads": (2, 2, 8, 8)}
"""Heads, key/value heads, rows of queries, rows of keys after half of each unit is removed."""


def sizes(net: nn.Module) -> tuple[int, ...]:
    made = net.attention
    return made.heads, made.shared, made.q.out_features, made.k.out_features


@pytest.mark.parametrize("idle", ["heads", "query_heads"])
@pytest.mark.parametrize("batches", [None, BATCHES], ids=["without data", "with data"])
def test_the_unit_that_loses_less_is_taken(idle: str, batches: Any) -> None:
    notes = Notes()
    recipe = Recipe.preset("one-shot", widths=WIDTHS, criterion="magnitude")
    result = prune(
        Layer(idle), X, sec.Budget(channels=0.5), batches=batches, recipe=recipe, callbacks=[notes]
    )
    assert sizes(result.model) == KEPT[idle]
    assert result.ok
    other = next(unit for unit in KEPT if unit != idle)
    lines = [line for line in notes.notes if line.startswith("attention:")]
    assert any(f"removing {idle} " in line and line.endswith(", chosen") for line in lines)
    assert any(f"removing {other} " in line and line.endswith("not chosen") for line in lines)
    assert len(notes.scores) == 1
    assert len(notes.scores[0]["attention.q"]) == 2


def test_the_unit_that_was_asked_for_is_taken() -> None:
    recipe = Recipe.preset("one-shot", widths=WIDTHS, criterion="magnitude", attention="query_heads")
    result = prune(Layer("heads"), X, sec.Budget(channels=0.5), recipe=recipe)
    assert sizes(result.model) == KEPT["query_heads"]


def test_a_frontier_takes_the_unit_that_was_asked_for() -> None:
    recipe = Recipe(allocation="global", criterion="magnitude", widths=WIDTHS, attention="query_heads")
    found = sec.frontier(Layer("heads"), X, BATCHES, by="params", points=2, recipe=recipe)
    smallest = found.points[-1].plan
    assert {item.unit for item in smallest.graph.attentions} == {"query_heads"}
    assert set(found.measured.scores) == {"attention.q"}
    assert len(found.measured.scores["attention.q"]) == SHARED, "query heads of each key/value head"


def test_width_curves_choose_as_well() -> None:
    recipe = Recipe.preset("one-shot", widths=WIDTHS, criterion="magnitude", allocation="curves")
    result = prune(Layer("query_heads"), X, sec.Budget(channels=0.5), batches=BATCHES, recipe=recipe)
    assert sizes(result.model) == KEPT["query_heads"]
    assert result.curves is not None


def test_groups_that_both_units_have_are_measured_once_and_progress_is_seen() -> None:
    net = Layer("query_heads")
    by_unit = {unit: sec.trace(net, X, attention=unit) for unit in KEPT}
    recipe = Recipe.preset("one-shot", criterion="magnitude", allocation="curves")
    curves = {
        unit: sec.width_curves(net, graph, sec.score(net, graph, "magnitude"), [X])
        for unit, graph in by_unit.items()
    }
    shared = curves_of_same_groups(by_unit["query_heads"], by_unit["heads"], curves["heads"])
    assert set(shared) == set(curves["heads"]) - {"attention.q"}  # which has two channels in both
    assert len(shared) == 1

    class Tasks(Notes):
        def on_progress(self, progress: Any) -> None:
            self.notes.append(progress.task)

    def chosen_of(notes: Notes) -> list[str]:
        return [line for line in notes.notes if line.startswith("attention:") and line.endswith(", chosen")]

    notes = Tasks()
    result = prune(
        Layer("query_heads"), X, sec.Budget(params=0.8), batches=BATCHES, recipe=recipe, callbacks=[notes]
    )
    first = next(place for place, line in enumerate(notes.notes) if line.startswith("attention:"))
    assert "measuring widths" in notes.notes[:first]
    unit = next(unit for unit in KEPT if f"removing {unit} " in " ".join(chosen_of(notes)))
    found = result.curves
    assert found is not None
    assert found.keys() == curves[unit].keys()
    for name, curve in found.items():
        assert curve.damages == pytest.approx(curves[unit][name].damages, rel=1e-3)


def test_a_budget_that_only_one_unit_reaches_decides() -> None:
    net = Layer("query_heads")
    graph = sec.trace(net, X)
    least = graph.cost({"attention.q": 1}).params
    assert least < sec.trace(net, X, attention="query_heads").cost({"attention.q": 1}).params
    recipe = Recipe.preset("one-shot", widths=WIDTHS, criterion="magnitude")
    result = prune(net, X, sec.Budget(params=least), recipe=recipe)
    assert sizes(result.model) == KEPT["heads"]
    with pytest.raises(BudgetError):
        prune(net, X, sec.Budget(params=least - 1), recipe=recipe)


def test_a_network_without_the_unit_is_refused() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    recipe = Recipe.preset("one-shot", criterion="magnitude", attention="heads")
    with pytest.raises(UsageError, match="this network has no attention"):
        prune(net, X[:, 0], sec.Budget(channels=0.5), recipe=recipe)
    with pytest.raises(UsageError, match="attention"):
        Recipe(attention="rows")


def test_earlier_measurements_keep_their_unit() -> None:
    net = Layer("heads")
    net.attention = Served(SHARED, 6)
    graph = sec.trace(net, X, attention="query_heads")
    measured = Measured(fingerprint(net), sec.score(net, graph, "magnitude"))
    context = replace(RecipeContext.of(net), measured=measured)
    recipe = Recipe.preset("one-shot", widths=WIDTHS, criterion="magnitude")
    run_recipe(net, X, sec.Budget(channels=0.7), recipe, Training(None), context)
    assert sizes(net) == (4, 2, 16, 8)


def test_a_run_from_earlier_measurements_is_resumed_with_their_unit(tmp_path: Path) -> None:
    net, file = Layer("heads"), tmp_path / "state.safetensors"
    net.attention = Served(SHARED, 6)
    whole = copy.deepcopy(net)
    graph = sec.trace(net, X, attention="query_heads")
    measured = Measured(fingerprint(net), sec.score(net, graph, "magnitude"))
    context = replace(RecipeContext.of(net), measured=measured, journal=Journal(file))
    recipe = Recipe.preset("one-shot", widths=WIDTHS, criterion="magnitude")
    run_recipe(net, X, sec.Budget(channels=0.7), recipe, Training(None), context)
    context.journal.record("other", Entry({}))  # writes all parts
    context = replace(RecipeContext.of(whole), journal=Journal(file))
    run_recipe(whole, X, sec.Budget(channels=0.7), recipe, Training(None), context)
    assert sizes(whole) == sizes(net)


def test_a_resumed_run_keeps_its_unit(tmp_path: Path) -> None:
    recipe = Recipe.preset("one-shot", widths=WIDTHS, criterion="magnitude")
    file, net = tmp_path / "state.safetensors", Layer("query_heads")
    journal = Journal(file)
    context = replace(RecipeContext.of(net), journal=journal)
    run_recipe(net, X, sec.Budget(channels=0.5), recipe, Training(None), context)
    journal.record("other", Entry({}))  # writes all parts
    found = Journal(file).recall("attention")
    assert found is not None
    journal = Journal(tmp_path / "killed.safetensors")
    journal.record("attention", found)
    again, notes = Layer("heads"), Notes()  # without what was recorded, whole heads would be removed
    context = replace(context, journal=Journal(tmp_path / "killed.safetensors"), callbacks=[notes])
    run_recipe(again, X, sec.Budget(channels=0.5), recipe, Training(None), context)
    assert sizes(net) == sizes(again) == KEPT["query_heads"]
    assert not notes.notes
