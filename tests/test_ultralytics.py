"""Detectors of Ultralytics: traced as they are built, without a forward pass beforehand."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sec
from tests.libraries import QUIET
from tests.library_networks import check_cuts

os.environ.setdefault("YOLO_CONFIG_DIR", "/tmp/ultralytics")  # it writes its settings when imported

pytestmark = QUIET


KINDS = {
    "seg": "SegmentationModel",
    "pose": "PoseModel",
    "cls": "ClassificationModel",
    "obb": "OBBModel",
}
"""Classes by the last part of a name; without one it is a detector."""

SLOW = [
    "yolo11n",
    "yolov8n-cls",
    "yolov8n-seg",
    "yolov5n",
    "yolov10n",
    "yolo11n-pose",
    "yolo11n-obb",
    "yolo12n",
    "yolo26n",
]
NETWORKS = [
    "yolov8n",
    *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
]


def build(name: str) -> nn.Module:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="needs ultralytics")
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    torch.manual_seed(0)
    kind = KINDS.get(name.partition("-")[2], "DetectionModel")
    model: nn.Module = getattr(tasks, kind)(f"{name}.yaml", nc=5, verbose=False)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_detector_and_its_relatives(name: str, tmp_path: Path) -> None:
    # The features that the head reads are returned beside what it makes of them.
    check_cuts(lambda: build(name), torch.rand(2, 3, 64, 64), tmp_path)


@pytest.mark.slow
def test_branches_of_a_detector_whose_scores_hardly_move() -> None:
    graph = sec.trace(build("yolo12n").eval(), torch.rand(2, 3, 64, 64))
    assert {branch.name: branch.reason for branch in graph.branches if not branch.prunable} == {}
