"""Segmentation networks whole, and the backbones of detectors, which go on detecting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur._torchvision import torchvision

SEGMENTATION = [
    "lraspp_mobilenet_v3_large",
    pytest.param("fcn_resnet50", marks=pytest.mark.slow),
    pytest.param("deeplabv3_mobilenet_v3_large", marks=pytest.mark.slow),
]
DETECTION = [
    "ssdlite320_mobilenet_v3_large",
    pytest.param("fasterrcnn_resnet50_fpn", marks=pytest.mark.slow),
    pytest.param("retinanet_resnet50_fpn_v2", marks=pytest.mark.slow),
]


def randomised(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters of all normalisations, so that a wrong cut shows."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if "BatchNorm" not in type(module).__name__:
                continue
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                if tensor.is_floating_point():
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
    return model.eval()


def halved(model: nn.Module, x: Tensor) -> tuple[nn.Module, sec.PruningPlan]:
    """The network with half of every group, verified, and its costs as predicted."""
    graph = sec.trace(model, x)
    plan = sec.make_plan(
        graph, sec.score(model, graph, "magnitude"), sec.Budget(channels=0.5), allocation="uniform"
    )
    small = sec.apply_plan(model, plan)
    check = sec.verify(model, small, plan, x)
    assert check.ok, str(check)
    assert sec.cost(small, x) == plan.cost_after
    return small, plan


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_networks_are_cut_whole(name: str) -> None:
    torch.manual_seed(0)
    model = randomised(torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5))
    x = torch.randn(2, 3, 64, 64)
    small, plan = halved(model, x)
    assert plan.cost_after.params < 0.4 * plan.cost_before.params
    answer = small(x)["out"]
    assert answer.shape == (2, 5, 64, 64)
    small.train()(x)["out"].square().mean().backward()


@pytest.fixture
def suppression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Non-maximum suppression in plain tensors, since torchvision's compiled one may not load."""
    monkeypatch.setattr(torchvision.ops.boxes, "nms", plain_suppression)


def plain_suppression(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    left = scores.argsort(descending=True).tolist()
    overlap = torchvision.ops.box_iou(boxes, boxes)
    kept: list[int] = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [other for other in left if overlap[best, other] <= threshold]
    return torch.tensor(kept, dtype=torch.int64)


# torchvision scripts part of a detector as it builds it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.usefixtures("suppression")
@pytest.mark.parametrize("name", DETECTION)
def test_detectors_go_on_detecting_with_a_cut_backbone(name: str) -> None:
    torch.manual_seed(0)
    model = randomised(torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5))
    x = torch.randn(2, 3, 96, 96)  # batch statistics need two
    border = {key: value.shape for key, value in model.backbone(x).items()}
    model.backbone, plan = halved(model.backbone, x)
    assert plan.cost_after.params < 0.75 * plan.cost_before.params
    assert {key: value.shape for key, value in model.backbone(x).items()} == border
    with torch.inference_mode():
        (found,) = model([torch.rand(3, 96, 96)])
    assert found["boxes"].shape == (len(found["labels"]), 4)
    assert found["scores"].shape == found["labels"].shape
