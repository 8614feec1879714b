"""Detectors of torchvision, cut whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateur as sec
from secateur._torchvision import has_operators, torchvision
from secateur.detection import HeadOutputs
from secateur.errors import UsageError


def backbone() -> nn.Module:
    found: nn.Module = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5
    )
    return found


def ssdlite() -> nn.Module:
    found: nn.Module = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    return found


def of(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models.detection, name)(backbone(), num_classes=4)


DETECTORS = {
    "fcos": (of("FCOS"), False),
    "retinanet": (of("RetinaNet"), False),
    "ssdlite": (ssdlite, False),
    "faster-rcnn": (of("FasterRCNN"), True),
    "mask-rcnn": (of("MaskRCNN"), True),
}
SLOW = ("retinanet", "ssdlite", "mask-rcnn")


def loss(detector: nn.Module) -> torch.Tensor:
    transform = detector.transform
    assert isinstance(transform, nn.Module)
    transform.min_size, transform.max_size = (64,), 64
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 5:50, 5:50] = 1
    target = {"boxes": torch.tensor([[5.0, 5, 50, 50]]), "labels": torch.tensor([1]), "masks": mask}
    losses = detector.train()([torch.rand(3, 64, 64)] * 2, [target] * 2)
    return sum(losses.values(), torch.tensor(0.0))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in DETECTORS]
)
def test_a_detector_is_cut_whole_and_trains(name: str) -> None:
    make, reads_regions = DETECTORS[name]
    detector, x = make().eval(), torch.rand(2, 3, 64, 64)
    heads = HeadOutputs(detector)
    graph = sec.trace(heads, x)
    assert all(group.name.startswith(("head.", "rpn.", "roi_heads.")) for group in graph.frozen)
    inside = {member.module.partition(".")[0] for group in graph.prunable for member in group.members}
    assert inside >= {"backbone", "rpn" if reads_regions else "head"}
    parameters = sum(tensor.numel() for tensor in detector.parameters())
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    plan = sec.make_plan(graph, sec.score(heads, graph, "magnitude"), sec.Budget(params=0.5))
    small = sec.apply_plan(heads, plan)
    assert sec.verify(heads, small, plan, x).ok
    assert all(torch.equal(tensor, before[key]) for key, tensor in detector.state_dict().items())
    sec.apply_plan(heads, plan, inplace=True)
    assert sum(tensor.numel() for tensor in detector.parameters()) <= 0.5 * parameters
    if not reads_regions or has_operators():
        loss(detector).backward()
        assert all(tensor.grad is not None for tensor in detector.parameters() if tensor.requires_grad)


def test_other_networks_are_refused() -> None:
    with pytest.raises(UsageError, match="Linear is no detector of torchvision"):
        HeadOutputs(nn.Linear(2, 2))
