from __future__ import annotations

import torch
from torch import nn

from secateur.training.context import RunContext
from secateur.training.loop import FitOptions, fit
from secateur.training.optimizers import make_optimizer, scaled_learning_rates
from secateur.training.settings import FitSettings, OptimizerSettings
from tests.recorder import Recorder


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
    with scaled_learning_rates(optimizer) as scale:
        assert scale(0.5) == 0.2
        assert scale(0.5) == 0.2
    assert {group["lr"] for group in optimizer.param_groups} == {0.4}
    assert all("initial_lr" not in group for group in optimizer.param_groups)


def test_a_learning_rate_set_between_two_phases_holds() -> None:
    model, batches = nn.Linear(3, 2), [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, batches, FitSettings(epochs=1, schedule="constant"), FitOptions(optimizer=optimizer))
    optimizer.param_groups[0]["lr"] = 0.01
    heard: list[float] = []

    class Rates(Recorder):
        def received(self, event: object) -> None:
            heard.append(optimizer.param_groups[0]["lr"])

    around = RunContext(callbacks=[Rates()])
    fit(
        model,
        batches,
        FitSettings(epochs=1, schedule="constant"),
        FitOptions(optimizer=optimizer, context=around),
    )
    assert set(heard) == {0.01}
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_a_schedule_of_torch_goes_on_as_if_a_fit_had_not_been() -> None:
    """Its base is kept in the group of the optimizer, under a key that a fit must leave alone."""
    model, batches = nn.Linear(3, 2), [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    fit(model, batches, FitSettings(epochs=2), FitOptions(optimizer=optimizer))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"]) == (0.05, 0.1)


def test_a_learning_rate_that_is_a_tensor_stays_that_tensor() -> None:
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam(network().parameters(), lr=rate, foreach=False, capturable=False)
    with scaled_learning_rates(optimizer) as scale:
        assert scale(0.5) == 0.25
        assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.5
