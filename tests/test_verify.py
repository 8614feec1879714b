from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.graph import Role
from secateur.verification import Expectation
from tests.graph.networks import NAMES, build


def cut(name: str, x: torch.Tensor) -> tuple[nn.Module, nn.Module, sec.PruningPlan]:
    model = build(name).eval()
    graph = sec.trace(model, x)
    plan = sec.PruningPlan(graph, {g.name: tuple(range(0, g.channels, 2)) for g in graph.prunable})
    return model, sec.apply_plan(model, plan), plan


@pytest.mark.parametrize("name", NAMES)
def test_a_right_cut_is_proved(name: str):
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut(name, x)
    check = sec.verify(model, small, plan, x)
    assert check.ok
    assert check.max_error < 1e-5
    assert check.channels_removed == plan.channels_removed


@pytest.mark.parametrize("name", ["residual", "dense", "flattened", "layerscale", "grouped-places"])
def test_a_wrong_cut_of_the_right_shapes_is_caught(name: str):
    """Two kept channels change places in one reader: all shapes fit, the numbers do not."""
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut(name, x)
    group = plan.graph.prunable[0]
    reader = group.roles(Role.CONSUMER)[-1]
    wrong = copy.deepcopy(small)
    weight = wrong.get_parameter(reader.tensor)
    with torch.no_grad():
        order = torch.arange(weight.shape[reader.dim])
        order[:2] = order[:2].flip(0)
        weight.copy_(weight.index_select(reader.dim, order))
    check = sec.verify(model, wrong, plan, x)
    assert not check.ok
    assert "DIFFERS" in str(check)


def test_another_batch_size_is_fine_and_another_picture_size_is_not():
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut("residual", x)
    assert sec.verify(model, small, plan, torch.randn(5, 3, 8, 8)).ok
    check = sec.verify(model, small, plan, torch.randn(5, 3, 8, 8))
    # the user's five examples, twelve draws and training mode with two, and what training writes
    assert check.outputs == 25 + 12 * 10 + 10 + 8
    with pytest.raises(sec.VerificationError, match="only the batch size"):
        sec.verify(model, small, plan, torch.randn(2, 3, 9, 9))


def test_an_expectation_outlives_a_cut_in_place():
    x = torch.randn(2, 3, 8, 8)
    model = build("residual")
    graph = sec.trace(model, x)
    plan = sec.PruningPlan(graph, {g.name: (0, 2) for g in graph.prunable})
    expectation = Expectation.of(model, plan, x)
    sec.apply_plan(model, plan, inplace=True)
    assert expectation.check(model).ok
    with torch.no_grad():
        model.head.bias += 1
    assert not expectation.check(model).ok


def test_modes_are_left_alone():
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut("residual", x)
    model.train()
    small.train()
    small.norm.eval()
    before = copy.deepcopy(small.state_dict())
    sec.verify(model, small, plan, x)
    assert model.training
    assert small.training
    assert not small.norm.training
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())


def test_a_network_that_gives_no_numbers_is_not_proved():
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut("residual", x)
    with torch.no_grad():
        small.head.bias.fill_(float("nan"))
    assert not sec.verify(model, small, plan, x).ok
