"""Detectors of Ultralytics: traced as they are built, without a forward pass beforehand."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sec

os.environ.setdefault("YOLO_CONFIG_DIR", "/tmp/ultralytics")  # it writes its settings when imported

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def build(name: str) -> nn.Module:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="needs ultralytics")
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    torch.manual_seed(0)
    kind = tasks.SegmentationModel if "seg" in name else tasks.DetectionModel
    model = kind(f"{name}.yaml", nc=5, verbose=False)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def free(graph: sec.ChannelGraph) -> set[tuple[str, int]]:
    return {(member.tensor, member.dim) for group in graph.prunable for member in group.members}


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolov8n-seg"])
def test_backbone_and_neck_are_free_and_the_model_is_untouched(name: str, tmp_path: Path) -> None:
    model, images = build(name), torch.rand(2, 3, 64, 64)
    attributes = [dict(vars(module)) for module in model.modules()]
    values = copy.deepcopy(model.state_dict())
    graph = sec.trace(model, images)
    for module, before in zip(model.modules(), attributes, strict=True):
        assert list(vars(module)) == list(before)
        assert all(vars(module)[key] is value for key, value in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in values.items())
    # The features that the head reads are returned beside what it makes of them.
    outputs = {
        (member.tensor, member.dim)
        for group in graph.frozen
        if group.reason == "is an output of the network"
        for member in group.members
    }
    head = f"model.{len(model.model) - 1}."
    frozen = [
        (path, dim)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not path.startswith(head)
        for dim in (0, 1)
        if module.weight.shape[dim] > 3 and (f"{path}.weight", dim) not in free(graph) | outputs
    ]
    assert not frozen
    scores = sec.score(model, graph, "magnitude")
    plan = sec.make_plan(graph, scores, sec.Budget(channels=0.5), allocation="uniform")
    small = sec.apply_plan(model, plan)
    check = sec.verify(model, small, plan, images)
    assert check.ok, check
    assert check.modes == ("evaluation", "training")
    small.train()
    sum(leaf.square().mean() for leaf in leaves(small(images)) if leaf.requires_grad).backward()
    small.eval()
    sec.save(tmp_path / "small.safetensors", small)
    again = sec.load(tmp_path / "small.safetensors", model=build(name)).eval()
    with torch.no_grad():
        pairs = zip(leaves(small(images)), leaves(again(images)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def leaves(output: object) -> list[torch.Tensor]:
    found = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in found if isinstance(leaf, torch.Tensor)]
