"""What runs a network in training mode leaves its buffers as they were, also in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.untouched import untouched

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch normalisation": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        (2, 3, 4, 4),
    ),
    "spectral normalisation": (
        lambda: nn.Sequential(
            nn.Linear(3, 8), nn.ReLU(), nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4))
        ),
        (5, 3),
    ),
}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> list[str]:
    return [name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_tracing_and_verifying_change_no_buffer(name: str, dtype: torch.dtype) -> None:
    make, shape = NETWORKS[name]
    model, inputs = make().to(dtype).eval(), torch.randn(shape, dtype=dtype)
    before = state(model)
    graph = sec.trace(model, inputs)
    plan = sec.PruningPlan(graph, {group.name: (0, 1, 2) for group in graph.prunable})
    small = sec.apply_plan(model, plan)
    cut = state(small)
    sec.verify(model, small, plan, inputs)
    assert not changed(before, model)
    assert not changed(cut, small)


def test_running_statistics_are_put_back() -> None:
    norm = nn.BatchNorm1d(3)
    before = state(norm)
    with untouched(norm):
        norm(torch.randn(4, 3))
    assert not changed(before, norm)
