from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import secateur as sec
from tests.graph.networks import build

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda params: SGD(params, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda params: Adam(params, 0.01, amsgrad=True),
    "adamw": lambda params: AdamW(params, 0.01, foreach=False),
}


def every_second(graph: sec.ChannelGraph) -> sec.PruningPlan:
    return sec.PruningPlan(graph, {g.name: tuple(range(0, g.channels, 2)) for g in graph.prunable})


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    model.train()
    for seed in range(steps):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def state_of(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    return {name: dict(optimizer.state[parameter]) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("inplace", [True, False])
def test_optimizer_state_is_cut_like_the_parameters(kind: str, inplace: bool):
    model = build("residual")
    optimizer = OPTIMIZERS[kind](list(model.parameters()))
    train(model, optimizer, 2)
    graph = sec.trace(model, torch.randn(2, 3, 8, 8))
    plan = every_second(graph)
    before = state_of(optimizer, model)
    weights = copy.deepcopy(model.state_dict())
    small = sec.apply_plan(model, plan, optimizer=optimizer, inplace=inplace)

    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in small.parameters()}
    assert {id(p) for p in optimizer.state} == {id(p) for p in small.parameters()}
    by_dimension: dict[str, dict[int, np.ndarray]] = {}
    for (tensor, dim), kept in plan.kept_slots.items():
        by_dimension.setdefault(tensor, {})[dim] = kept
    for name, parameter in small.named_parameters():
        grid = [by_dimension.get(name, {}).get(d, np.arange(n)) for d, n in enumerate(weights[name].shape)]
        place = np.ix_(*grid)
        assert torch.equal(parameter.detach(), weights[name][place])
        assert before[name].keys() == optimizer.state[parameter].keys()
        for key, value in optimizer.state[parameter].items():
            old = before[name][key]
            assert torch.equal(value, old[place] if old.shape == weights[name].shape else old)
    train(small, optimizer, 2)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in small.parameters())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_if_the_small_network_had_always_been_trained(kind: str):
    """The cut and its optimizer, against an optimizer made anew and given the cut state by hand."""
    model = build("flattened")
    optimizer = OPTIMIZERS[kind](list(model.parameters()))
    train(model, optimizer, 3)
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
    twin = copy.deepcopy(model)
    other = OPTIMIZERS[kind](list(twin.parameters()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(twin, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_in_place_keeps_identities_and_clears_gradients():
    model = build("residual")
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    identities = {name: id(parameter) for name, parameter in model.named_parameters()}
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    result = sec.apply_plan(model, plan, inplace=True)
    assert result is model
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == identities
    cut = {name for name, _ in plan.kept_slots}
    assert all(p.grad is None for name, p in model.named_parameters() if name in cut)
    assert model.stem.out_channels == 4
    assert model.norm.num_features == 4
    assert model.head.in_features == 4


def test_tracing_with_a_view_does_not_forbid_cutting_in_place():
    model = build("residual")
    pictures = torch.randn(8, 3, 8, 8)
    graph = sec.trace(model, pictures[:2])
    plan = every_second(graph)
    sec.apply_plan(model, plan, inplace=True)
    sec.trace(model, pictures[2:4])
    assert sec.cost(model, pictures[:1]).params == plan.cost_after.params


def test_counting_with_a_view_does_not_forbid_cutting_in_place():
    model = build("residual")
    pictures = torch.randn(8, 3, 8, 8)
    plan = every_second(sec.trace(model, pictures[:2]))
    assert sec.cost(model, pictures[:1]).params == plan.cost_before.params
    sec.apply_plan(model, plan, inplace=True)
    assert sec.cost(model, pictures[:1]).params == plan.cost_after.params


def test_a_copy_shares_nothing_with_the_original():
    model = build("residual")
    before = copy.deepcopy(model.state_dict())
    small = sec.apply_plan(model, every_second(sec.trace(model, torch.randn(2, 3, 8, 8))))
    with torch.no_grad():
        for tensor in [*small.parameters(), *small.buffers()]:
            tensor.fill_(7)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.stem.out_channels == 8


def test_requires_grad_and_device_and_dtype_are_kept():
    model = build("residual").double()
    model.inner.weight.requires_grad_(False)
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8, dtype=torch.float64)))
    small = sec.apply_plan(model, plan)
    assert not small.inner.weight.requires_grad
    assert small.outer.weight.requires_grad
    assert small.inner.weight.dtype is torch.float64


def test_a_plan_fits_only_its_network_and_only_once():
    model = build("residual")
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    small = sec.apply_plan(model, plan)
    with pytest.raises(sec.SurgeryError, match="applied already"):
        sec.apply_plan(small, plan)
    with pytest.raises(sec.SurgeryError, match="no tensor"):
        sec.apply_plan(build("dense"), plan)


def test_a_held_parameter_is_refused_and_nothing_changes():
    model = build("residual")
    x = torch.randn(2, 3, 8, 8)
    plan = every_second(sec.trace(model, x))
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 1)
    before = copy.deepcopy(model.state_dict())
    loss = model.eval()(x).sum()  # the autograd graph holds on to the parameters
    with pytest.raises(sec.SurgeryError, match="holds on to it"):
        sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if "running" not in key)
    assert all(before[key].shape == after[key].shape for key in before)
    assert model.stem.out_channels == 8
    loss.backward()
    train(model, optimizer, 1)


@settings(max_examples=15)
@given(data=st.data(), rounds=st.integers(1, 3))
def test_several_rounds_without_tracing_again(data: st.DataObject, rounds: int):
    model, x = build("dense").eval(), torch.randn(2, 3, 8, 8)
    graph = sec.trace(model, x)
    for _ in range(rounds):
        keep = {
            g.name: sorted(
                data.draw(st.sets(st.integers(0, g.channels - 1), min_size=1, max_size=g.channels))
            )
            for g in graph.prunable
        }
        plan = sec.PruningPlan(graph, keep)
        small = sec.apply_plan(model, plan)
        assert sec.verify(model, small, plan, x).ok
        model, graph = small, graph.after(plan)
        assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == dict(graph.tensors)
    fresh = sec.trace(model, x)
    assert fresh.cost() == graph.cost()
