"""Every torchvision classification CNN: cut to half its width, verified, trained a step, saved, reloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import secateur as sec
from tests.families import QUICK, REST, build, example, spec


def cut_in_half(name: str, tmp_path: Path) -> None:
    model, x = build(name), example(name)
    graph = sec.trace(model, x)
    scores = sec.score(model, graph, "random")
    keep = {
        group.name: sorted(scores[group.name].argsort()[: max(1, group.channels // 2)].tolist())
        for group in graph.prunable
    }
    plan = sec.PruningPlan(graph, keep)
    small = sec.apply_plan(model, plan)

    check = sec.verify(model, small, plan, x, tolerance=1e-4)
    assert check.ok, str(check)
    assert sec.cost(small, x) == plan.cost_after
    assert plan.cost_after.params < 0.6 * plan.cost_before.params
    small.eval()
    with torch.no_grad():
        assert small(x).shape == model.eval()(x).shape

    train_a_step(small, x)

    path = tmp_path / "small.safetensors"
    sec.save(path, small, builder=spec(name))
    again = sec.load(path)
    saved, loaded = small.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    with torch.no_grad():
        assert torch.equal(small.eval()(x), again.eval()(x))


HEAVY = (
    "vgg11",
    "vgg11_bn",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "densenet121",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_y_400mf",
    "convnext_tiny",
)
"""Families whose smallest network takes long; each has a relative among the others."""


def train_a_step(model: torch.nn.Module, x: torch.Tensor) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    outputs = model(x)
    outputs = tuple(outputs) if isinstance(outputs, tuple) else (outputs,)
    loss = sum(F.cross_entropy(output, torch.tensor([1, 2])) for output in outputs)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > 0.5 * len(changed)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in QUICK]
)
def test_one_of_each_family(name: str, tmp_path: Path):
    cut_in_half(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_the_rest_of_each_family(name: str, tmp_path: Path):
    cut_in_half(name, tmp_path)
