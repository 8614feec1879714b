"""Gradient hooks of parameters must run after a cut: the forward pass does not show whether they do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sec


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def by_plain_mask(model: nn.Sequential) -> None:
    mask = torch.ones(16, 6)
    model[0].weight.register_hook(lambda gradient: gradient * mask)


def by_mask_after_adding(model: nn.Sequential) -> None:
    mask = torch.ones(16, 6)

    def masked(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(mask)

    model[0].weight.register_post_accumulate_grad_hook(masked)


def by_unread_buffer(model: nn.Sequential) -> None:
    model.register_buffer("mask", torch.ones(16))
    model[0].bias.register_hook(lambda gradient: gradient * model.mask)


@pytest.mark.parametrize("register", [by_plain_mask, by_mask_after_adding, by_unread_buffer])
def test_a_hook_with_a_mask_of_the_old_size_freezes(register: Callable[[nn.Sequential], None]) -> None:
    model = net()
    register(model)
    graph = sec.trace(model, torch.randn(2, 6))
    reason = graph["0"].reason
    assert reason is not None
    assert "a gradient hook of '0." in reason


def test_a_check_calls_the_hooks() -> None:
    model, x = net(), torch.randn(2, 6)
    plan = sec.plan_from(sec.trace(model, x), {"0": [0]})
    by_plain_mask(model)
    small = sec.apply_plan(model, plan)
    check = sec.verify(model, small, plan, x)
    assert not check.ok
    assert check.problem is not None
    assert "a gradient hook of '0.weight' fails" in check.problem


def by_decay(model: nn.Sequential) -> None:
    weight = model[0].weight
    weight.register_hook(lambda gradient: gradient + 0.1 * weight)


def by_step(model: nn.Sequential) -> None:
    """Take the step of an optimizer as soon as the gradient of its parameter is known."""
    optimizers = {weight: torch.optim.SGD([weight], 0.1, momentum=0.9) for weight in model.parameters()}

    def step(weight: Tensor) -> None:
        optimizers[weight].step()
        optimizers[weight].zero_grad()

    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(step)


def by_its_module(model: nn.Sequential) -> None:
    model[0].weight.register_hook(lambda gradient: gradient / model[0].weight.norm())


@pytest.mark.parametrize("register", [by_decay, by_step, by_its_module])
def test_a_hook_that_follows_leaves_channels_free(register: Callable[[nn.Sequential], None]) -> None:
    model, x = net(), torch.randn(2, 6)
    register(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    graph = sec.trace(model, x)
    assert graph["0"].reason is None
    plan = sec.plan_from(graph, {"0": [0, 3]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    assert all(torch.equal(found, before[name]) for name, found in model.state_dict().items())
    assert all(
        parameter.grad is not None and bool((parameter.grad == 1).all()) for parameter in model.parameters()
    )


def test_a_trial_leaves_what_a_hook_writes_to() -> None:
    model, seen = net(), []
    model[0].weight.register_hook(lambda gradient: seen.append(gradient.shape))
    sec.trace(model, torch.randn(2, 6))
    assert seen == []
