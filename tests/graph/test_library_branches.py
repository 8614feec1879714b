"""Half of the residual branches and half of every group of networks of libraries, removed together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sec
from secateur._torchvision import torchvision
from secateur.export import export
from tests.graph.test_branches import half_of
from tests.library_networks import lively

MODELS = torchvision.models
# How to build each network, the size of its images, and its number of residual branches.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (lambda: MODELS.resnet18(num_classes=5), 32, 5),
    "resnet50": (lambda: MODELS.resnet50(num_classes=5), 32, 12),
    "mobilenet_v2": (lambda: MODELS.mobilenet_v2(num_classes=5), 32, 10),
    "convnext_tiny": (lambda: MODELS.convnext_tiny(num_classes=5), 32, 18),
    "swin_t": (lambda: MODELS.swin_t(num_classes=5), 32, 24),
    "vit": (
        lambda: MODELS.VisionTransformer(
            image_size=16, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5
        ),
        16,
        4,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
def test_half_of_everything(name: str, tmp_path: Path) -> None:
    build, size, count = NETWORKS[name]
    torch.manual_seed(0)
    model, x = lively(build()), torch.randn(2, 3, size, size)
    graph = sec.trace(model, x)
    assert [branch.reason for branch in graph.branches] == [None] * count
    plan = half_of(graph, 1)
    assert 0 < plan.branches_removed < count
    small = sec.apply_plan(model, plan)
    check = sec.verify(model, small, plan, x)
    assert check.ok, check
    optimizer = torch.optim.SGD(small.parameters(), 1e-6, momentum=0.9)
    torch.nn.functional.cross_entropy(small.train()(x), torch.tensor([0, 1])).backward()
    optimizer.step()
    small.eval()
    assert small(x).isfinite().all()
    sec.save(tmp_path / "a.safetensors", small)
    again = sec.load(tmp_path / "a.safetensors", model=build())
    assert torch.equal(again(x), small(x))
    done = export(tmp_path / "a.onnx", small, x)
    assert done.check.ok
    assert done.check.max_error <= 1e-5
