"""Networks that nobody thought of: drawn at random, cut at random, verified after every round.

The slow test draws twice as many as the ordinary one. ``SECATEUR_EXAMPLES=1000`` draws that many, and other
ones each time.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import secateur as sec
from secateur.graph import Cost, Group
from secateur.graph.cutting.tensors import named_tensors
from tests.graph.random_networks import STATISTICS, Recipe, Step, build, recipes
from tests.graph.test_silent_errors import zeroed

EXAMPLES = int(os.environ.get("SECATEUR_EXAMPLES", "0"))
SHARE = {1: 0.2, 2: 0.6, 3: 0.2}
"""How many of the examples have one, two and three spatial dimensions."""

UNCOUNTED = {"attention", "multihead", "scores", "pair", "queries", "decoder", "table"}
"""Kinds with operators that PyTorch's own counter passes over, or that run once for all examples."""

UNCOUNTED_WAYS = {"backwards": (8, 7), "covariance": (3, 0)}
"""Of kinds with several ways, how many there are and which one is such."""


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # said once in a process, so not again on replay
@pytest.mark.parametrize("examples", [EXAMPLES or 50, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dims", SHARE)
def test_random_networks_are_cut_and_proved(dims: int, examples: int) -> None:
    @settings(
        max_examples=max(1, round(examples * SHARE[dims])),
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(recipe=recipes(dims), rounds=st.integers(1, 3))
    def example(recipe: Recipe, rounds: int) -> None:
        prune_in_rounds(recipe, rounds)

    example()


def prune_in_rounds(recipe: Recipe, rounds: int) -> None:
    model, x = build(recipe)
    graph = sec.trace(model, x)
    assert all(group.reason for group in graph.frozen)
    generator = np.random.default_rng(recipe.seed)
    for number in range(rounds):
        plan = sec.PruningPlan(graph, {group.name: some(generator, group) for group in graph.prunable})
        small = sec.apply_plan(model, plan)
        check = sec.verify(model, small, plan, x, tolerance=1e-9)
        if not check.outputs:  # what is left is dead, by weights drawn at random, and that is said
            assert check.max_error <= check.tolerance  # of outputs that move by rounding noise alone
            with torch.no_grad():
                torch.testing.assert_close(small(x), small(torch.randn_like(x)), rtol=1e-9, atol=1e-9)
            return
        assert check.ok, check
        if number == 0 and not any(step.kind in STATISTICS for step in recipe.steps):
            same_as_with_columns_zeroed(model, small, plan, x)
        graph, model = graph.after(plan), small
        assert graph.tensors == {name: tuple(item.shape) for name, item in named_tensors(model).items()}
    uncounted = any(map(is_uncounted, recipe.steps))
    if not uncounted:
        costs_what_is_predicted(model, graph.cost(), x)
    if uncounted or recipe.seed % 4 == 0:  # takes as long as everything else
        assert graph.cost() == sec.cost(model, x)
    trains(model, x)


def is_uncounted(step: Step) -> bool:
    """Whether PyTorch counts another number of operations, or counts them once for all examples."""
    ways, which = UNCOUNTED_WAYS.get(step.kind, (1, -1))
    return step.kind in UNCOUNTED or step.way % ways == which


def some(generator: np.random.Generator, group: Group) -> list[int]:
    """Between as few as are needed and all channels of a group."""
    count = int(generator.integers(min(group.min_channels, group.channels), group.channels + 1))
    return generator.permutation(group.channels)[:count].tolist()


def same_as_with_columns_zeroed(
    model: nn.Module, small: nn.Module, plan: sec.PruningPlan, x: torch.Tensor
) -> None:
    """The answer that needs no engine: what weights read of removed channels is held at zero."""
    silent = zeroed(model, plan.graph, {name: list(kept) for name, kept in plan.keep.items()})
    with torch.no_grad():
        torch.testing.assert_close(small(x), silent(x), rtol=1e-9, atol=1e-9)


def costs_what_is_predicted(model: nn.Module, predicted: Cost, x: torch.Tensor) -> None:
    """Parameters and multiply-accumulates as PyTorch counts them; it counts two operations for each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert predicted.macs * 2 * len(x) == counter.get_total_flops()
    assert predicted.params == sum(parameter.numel() for parameter in model.parameters())


def trains(model: nn.Module, x: torch.Tensor) -> None:
    """A training step reaches the parameters, with finite gradients."""
    model.train()
    model(x).square().sum().backward()
    reached = [item.grad for item in model.parameters() if item.grad is not None]
    assert reached
    assert all(torch.isfinite(grad).all() for grad in reached)
    model.zero_grad()
    model.eval()
