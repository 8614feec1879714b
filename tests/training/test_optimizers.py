from __future__ import annotations

import torch
from torch import nn

from secateur.training.optimizers import make_optimizer, set_factor
from secateur.training.settings import OptimizerSettings


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


def test_weight_decay_acts_on_weights_and_on_nothing_else() -> None:
    model = network()
    optimizer = make_optimizer(model, OptimizerSettings(weight_decay=0.1, learning_rate=0.5, momentum=0))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model[0].weight), id(model[3].weight)}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer.step()
    for name, value in model.named_parameters():
        shrunk = before[name] * (1 - 0.5 * 0.1) if value.ndim > 1 else before[name]
        torch.testing.assert_close(value.detach(), shrunk.detach())


def test_each_parameter_is_optimised_once_and_frozen_ones_are_not() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = make_optimizer(model, OptimizerSettings(name="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_factors_do_not_add_up() -> None:
    optimizer = make_optimizer(network(), OptimizerSettings(learning_rate=0.4))
    assert set_factor(optimizer, 0.5) == 0.2
    assert set_factor(optimizer, 0.5) == 0.2
    assert set_factor(optimizer, 1.0) == 0.4
    assert {group["lr"] for group in optimizer.param_groups} == {0.4}
