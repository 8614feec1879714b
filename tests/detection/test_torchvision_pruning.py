"""Detectors of torchvision, from labelled boxes to a smaller checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from click.testing import Result
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import secateur as sec
from secateur._torchvision import detectors_runnable
from secateur.cli import app
from secateur.detection import (
    DetectorSettings,
    HeadOutputs,
    prune_detector,
    torchvision_pruning,
)
from secateur.detection.data import read_yolo_labels
from secateur.errors import UsageError
from secateur.recipes import PruneResult, Recipe, run_recipe
from secateur.training.run_folder import read_metrics, read_summary
from tests.detection.generated import COLOURS, SIDE, draw
from tests.detection.torchvision_detectors import small_detector
from tests.libraries import QUIET

pytestmark = QUIET

KINDS = ["SSD", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("RetinaNet", "FCOS", "FasterRCNN"))]
SETTINGS = DetectorSettings(image_size=SIDE, batch=4, calibration_images=8)


def without_normalisation(detector: Any) -> nn.Module:
    detector.transform.image_mean, detector.transform.image_std = [0.0] * 3, [1.0] * 3
    found: nn.Module = detector
    return found


def targets() -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[5.0, 8, 40, 50], [20, 10, 60, 30]])
    return [
        {"boxes": boxes, "labels": torch.tensor([1, 2])},
        {"boxes": boxes[:1], "labels": torch.tensor([2])},
    ]


@pytest.mark.parametrize("kind", ["SSD", "RetinaNet", "FCOS", "FasterRCNN"])
def test_losses_and_boxes_are_those_of_the_detector(kind: str) -> None:
    detector, images = without_normalisation(small_detector(kind)), torch.rand(2, 3, SIDE, SIDE)
    modes = {name: module.training for name, module in detector.named_modules()}
    heads = HeadOutputs(detector)
    with detectors_runnable():
        torch.manual_seed(1)
        found = heads.train()(images=images, targets=targets())["loss"]
        torch.manual_seed(1)
        losses = detector.train()(list(images), targets())
        torch.testing.assert_close(found, sum(losses.values(), torch.tensor(0.0)))
        detector.eval()
        assert {name: module.training for name, module in detector.named_modules()} == modes
        in_evaluation_mode = heads.eval()(images=images, targets=targets())["loss"]
        assert in_evaluation_mode.requires_grad
        for one, other in zip(heads.detect(images), detector(list(images)), strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_prune_train_save_and_load(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, data = small_detector(kind), draw(tmp_path / "data")
    checks = Mock(wraps=torchvision_pruning._check_classes)
    monkeypatch.setattr(torchvision_pruning, "_check_classes", checks)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    result = prune_detector(
        detector, data, sec.Budget(macs=0.6), tmp_path / "out", Recipe(finetune={"epochs": 1}), SETTINGS
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert checks.call_count == 1
    assert result.pruning.ok
    assert result.pruning.cost_after.macs <= 0.6 * result.pruning.cost_before.macs
    assert result.metrics["after"]["map"] >= result.metrics["cut"]["map"]
    again = sec.load(result.file, model=small_detector(kind))
    images = torch.rand(2, 3, SIDE, SIDE)
    one, other = HeadOutputs(again).detect(images), HeadOutputs(result.network).detect(images)
    assert all(torch.equal(one[n][name], other[n][name]) for n in range(2) for name in one[n])
    with detectors_runnable():
        sum(again.train()(list(images), targets()).values(), torch.tensor(0.0)).backward()
    assert all(tensor.grad is not None for tensor in again.parameters())


def test_yolo_labels_are_read_as_they_were_drawn(tmp_path: Path) -> None:
    found = read_yolo_labels(draw(tmp_path / "boxes", images=4))
    polygons = read_yolo_labels(draw(tmp_path / "polygons", images=4, kind="polygons"))
    assert found.names == tuple(COLOURS)
    assert {split: len(images) for split, images in found.splits.items()} == {"train": 4, "val": 4, "test": 0}
    for split in ("train", "val"):
        for one, other in zip(found.splits[split], polygons.splits[split], strict=True):
            assert one.objects[0][0] == list(COLOURS)[int(one.file.stem) % 2]
            assert one.objects[0][1:] == pytest.approx(other.objects[0][1:])
            left, top, right, bottom = map(round, one.objects[0][1:])
            assert 20 <= right - left < 36
            assert 20 <= bottom - top < 36


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("7 0.5 0.5 0.1 0.1", "class 7 of 2"),
        ("0 0.5 0.5 30 40", "no class with shares"),
        ("0 0.5 0.5", "no class with shares"),
        ("red 0.5 0.5 0.1 0.1", "could not convert"),
        ("0 1.0005 0.5 0.0005 0.1", "is empty"),
    ],
)
def test_broken_yolo_labels_are_named(line: str, reason: str, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", images=3)
    (tmp_path / "data" / "labels" / "train" / "1.txt").write_text(line)
    found = read_yolo_labels(data)
    assert len(found.splits["train"]) == 2
    assert [reason in text for text in found.broken] == [True]
    assert found.broken[0].startswith("1.png: ")


def test_a_box_without_width_leaves_the_other_boxes_of_its_image(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", images=3)
    file = tmp_path / "data" / "labels" / "train" / "1.txt"
    file.write_text(f"0 0.5 0.5 0 0.1\n0 0.5 0.5 0.1 0\n{file.read_text()}")
    found = read_yolo_labels(data)
    assert [len(image.objects) for image in found.splits["train"]] == [1, 1, 1]
    assert [text.rpartition(" has no ")[::2] for text in found.broken] == [
        ("1.png: a box of red at (32, 28.8)", "width"),
        ("1.png: a box of red at (28.8, 32)", "height"),
    ]


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_an_image_that_is_cut_short_is_left_out_and_named(ending: str, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", images=3)
    file = tmp_path / "data" / "images" / "train" / "1.png"
    place = file.with_suffix(f".{ending}")
    Image.open(file).save(place)
    if place != file:
        file.unlink()
    assert len(read_yolo_labels(data).splits["train"]) == 3
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
    found = read_yolo_labels(data)
    assert [image.file.stem for image in found.splits["train"]] == ["0", "2"]
    assert found.broken[0].startswith(f"{place.name}: {place.name} cannot be read as an image: ")


def refused(tmp_path: Path, detector: nn.Module, data: Path, settings: DetectorSettings = SETTINGS) -> str:
    with pytest.raises(UsageError) as caught:
        prune_detector(detector, data, sec.Budget(macs=0.5), tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_wrong_data_and_settings_are_refused(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", images=4)
    many = small_detector("SSD", classes=4)
    assert "5 classes with the background, the data has 2 (red, blue)" in refused(tmp_path, many, data)
    named = SETTINGS.model_copy(update={"classes": ("blue", "green")})
    assert "class 'red', which the network does not have" in refused(
        tmp_path, small_detector("SSD"), data, named
    )
    options = SETTINGS.model_copy(update={"options": {"lr0": 0.1}})
    assert "detector.options" in refused(tmp_path, small_detector("SSD"), data, options)
    assert "data.yaml; give" in refused(tmp_path, small_detector("SSD"), data.parent)
    for file in (tmp_path / "data" / "labels").rglob("*.txt"):
        file.unlink()
    assert "no training image has an object" in refused(tmp_path, small_detector("SSD"), data)


class Fit:
    """The time that a budget of latency reached."""

    def __str__(self) -> str:
        return "latency: 3 ms before, 2 ms after"

    def to_dict(self) -> dict[str, float]:
        return {"measured_ms": 2.0}


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*arguments: Any, **more: Any) -> PruneResult:
        return replace(run_recipe(*arguments, **more), latency=Fit())  # type: ignore[arg-type]

    monkeypatch.setattr("secateur.jobs.recipe_job.run_recipe", timed)
    data, run = draw(tmp_path / "data"), tmp_path / "run"
    torch.save(small_detector("SSD").state_dict(), tmp_path / "ssd.pth")
    (tmp_path / "net.py").write_text(
        "from tests.detection.torchvision_detectors import small_detector\n"
        "def ssd(num_classes=3):\n"
        "    return small_detector('SSD', num_classes - 1)\n"
    )
    network, sets = f"{tmp_path / 'net.py'}:ssd", []
    for text in (f"detector.image_size={SIDE}", "detector.batch=4", "finetune.epochs=1", "latency_seconds=0"):
        sets += ["--set", text]

    def secateur(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    weights = ("--weights", tmp_path / "ssd.pth")
    wrong = secateur(
        "prune",
        network,
        *weights,
        "--data",
        data,
        "--macs",
        0.5,
        "--out",
        run,
        "--set",
        "detector.options.lr0=1",
    )
    assert wrong.exit_code == 2
    assert not run.exists()
    done = secateur("prune", network, *weights, "--data", data, "--macs", 0.5, "--out", run, *sets)
    assert done.exit_code == 0, done.output
    summary = read_summary(run)
    assert summary["asked"] == {"latency": {"measured_ms": 2.0}}
    notes = [line["text"] for line in read_metrics(run) if line.get("event") == "note"]
    stages = [text.partition(":")[0] for text in notes]
    assert stages.index("before") < stages.index("latency") < stages.index("after")
    epochs = [line for line in read_metrics(run) if line.get("event") == "epoch"]
    assert [(line["epoch"], line["metric_name"]) for line in epochs] == [(0, "mAP50-95"), (1, "mAP50-95")]
    assert "latency: 3 ms before, 2 ms after" in done.output
    assert "mAP50-95" in done.output
    assert "validation mAP50-95" in (run / "report.html").read_text()
    found = secateur("evaluate", run, "--builder", network, "--data", data, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["image_size"] == SIDE
    assert json.loads(found.stdout)["map"] == summary["pruned"]["map"]
    predicted = secateur("predict", run, "--builder", network, tmp_path / "data" / "images" / "val" / "0.png")
    assert predicted.exit_code == 2
    assert "finds boxes, and predict names the classes of whole images" in " ".join(predicted.output.split())
    shown = secateur("inspect", network, "--classes", 3, "--input", f"3,{SIDE},{SIDE}")
    assert shown.exit_code == 0, shown.output
    assert "is an output of the network" in " ".join(shown.output.split())
    wrong = secateur("prune", "secateur:digits", "--data", data, "--macs", 0.5, "--out", tmp_path / "other")
    assert wrong.exit_code == 2
    assert "secateur:digits is no detector" in wrong.output
    folder = secateur("prune", network, "--data", data.parent, "--macs", 0.5, "--out", tmp_path / "other")
    assert folder.exit_code == 2
    assert f"give {data}" in " ".join(folder.output.split())
    trained = secateur("frontier", "secateur:digits", "--data", data, "--out", tmp_path / "other")
    assert trained.exit_code == 2
    assert "labelled boxes" in trained.output
