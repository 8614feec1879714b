"""Distillation of detectors: the difference of raw outputs from the teacher's is added to the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sec
from secateur.detection import DetectorSettings, HeadOutputs, prune_detector
from secateur.detection.library import ultralytics_in_use
from secateur.detection.raw_outputs import DistilledLoss, with_raw_outputs
from secateur.recipes import Recipe
from secateur.training.distillation import Teacher, relative_difference
from tests.detection.generated import SIDE, detector, draw
from tests.detection.torchvision_detectors import small_detector
from tests.libraries import QUIET

pytestmark = QUIET


def test_the_loss_of_a_detector_gets_the_difference_of_its_raw_outputs() -> None:
    pytest.importorskip("ultralytics")
    with ultralytics_in_use():
        from ultralytics.cfg import get_cfg

        network: Any = detector()
        network.args = get_cfg()
        batch = {
            "img": torch.rand(2, 3, SIDE, SIDE),
            "batch_idx": torch.tensor([0.0, 1.0]),
            "cls": torch.tensor([[1.0], [0.0]]),
            "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]]),
        }
        plain = network.train()(batch)[0].sum()
        other = with_raw_outputs(detector()).eval()
        for parameter in other.parameters():
            parameter.data *= 1.1
        teacher = Teacher(other, weight=0.0, outputs_weight=0.5)
        network.criterion = DistilledLoss(network.init_criterion(), teacher)
        found = network(batch)[0].sum()
        mine = with_raw_outputs(network).train()(batch["img"])
        expected = [
            (mine[name] - wanted).square().mean() / wanted.var(correction=0)
            for name, wanted in teacher.outputs(batch["img"]).items()
        ]
    torch.testing.assert_close(found, plain + 2 * 0.5 * sum(expected) / len(expected))


@pytest.mark.parametrize("library", ["torchvision", pytest.param("ultralytics", marks=pytest.mark.slow)])
def test_a_detector_learns_the_outputs_of_the_unpruned_one(library: str, tmp_path: Path) -> None:
    data = draw(tmp_path / "data")
    network = small_detector("SSD") if library == "torchvision" else detector("yolov3-tiny")
    settings = DetectorSettings(image_size=SIDE, batch=4, calibration_images=8)
    x = torch.rand(4, 3, SIDE, SIDE)
    differences = []
    for weight in (0.0, 1000.0):
        fine = {"epochs": 4} if library == "ultralytics" else {"epochs": 8, "keep_best": False}
        recipe = Recipe(finetune=fine, reconstruct=False, distillation={"outputs": weight})
        out = tmp_path / str(weight)
        result = prune_detector(network, data, sec.Budget(macs=0.4), out, recipe, settings)
        outputs = HeadOutputs if library == "torchvision" else with_raw_outputs
        with torch.no_grad():
            found, wanted = (outputs(each).eval()(x) for each in (result.network, network))
        differences.append(float(relative_difference(found, wanted)))
    assert differences[1] < differences[0]
