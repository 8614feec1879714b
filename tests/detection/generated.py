"""Generated images of coloured rectangles with labels, and small untrained detectors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from secateur.integrations.libraries import library

os.environ.setdefault("YOLO_CONFIG_DIR", "/tmp/ultralytics")  # it writes its settings when imported

SIDE = 64
COLOURS = {"red": (220, 40, 40), "blue": (40, 40, 220)}


def draw(folder: Path, images: int = 8, kind: str = "boxes") -> Path:
    """Write images with one rectangle each, labels and a data file.

    Args:
        folder: where to write.
        images: in each split.
        kind: what labels hold: ``boxes``, ``polygons``, ``points`` or ``rotated`` boxes.

    Returns:
        The data file.
    """
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("images", "labels"):
            (folder / name / split).mkdir(parents=True)
        for number in range(images):
            label = number % 2
            x, y = random.integers(4, 24, 2)
            width, height = random.integers(20, 36, 2)
            pixels = random.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8)
            pixels[y : y + height, x : x + width] = list(COLOURS.values())[label]
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            text = _label(kind, *(np.array([x, y, x + width, y + height]) / SIDE))
            (folder / "labels" / split / f"{number}.txt").write_text(f"{label} {text}\n")
    data = folder / "data.yaml"
    points = "kpt_shape: [2, 2]\n" if kind == "points" else ""
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(COLOURS))
    data.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\n{points}names:\n{names}")
    return data


def draw_by_class(folder: Path, images: int = 8) -> Path:
    """Write the same images in a folder for each class, as classifiers read them, and return the folder."""
    boxes = draw(folder / "boxes", images)
    for file in sorted(boxes.parent.glob("images/*/*.png")):
        place = folder / "classes" / file.parent.name / list(COLOURS)[int(file.stem) % 2]
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / file.name)
    return folder / "classes"


def _label(kind: str, left: float, top: float, right: float, bottom: float) -> str:
    box = f"{(left + right) / 2} {(top + bottom) / 2} {right - left} {bottom - top}"
    corners = f"{left} {top} {right} {top} {right} {bottom} {left} {bottom}"
    return {
        "boxes": box,
        "polygons": corners,
        "rotated": corners,
        "points": f"{box} {left} {top} {right} {bottom}",
    }[kind]


def detector(name: str = "yolov8n", width: float = 0.08) -> nn.Module:
    """Build an untrained network of ultralytics from its description, at a small width.

    Of ``yolov3-tiny`` the layers are few, so it is traced and measured in half of the time.
    """
    from secateur.detection.library import ultralytics_in_use

    with ultralytics_in_use():
        tasks = library("ultralytics.nn.tasks")
        description = tasks.yaml_model_load(f"{name}.yaml")
        description["width_multiple"] = width  # where there are no scales
        for scale in description.get("scales", {}).values():
            scale[1] = width
        torch.manual_seed(0)
        extra = {"data_kpt_shape": (2, 2)} if "pose" in name else {}
        kinds = {
            "seg": "SegmentationModel",
            "pose": "PoseModel",
            "obb": "OBBModel",
            "cls": "ClassificationModel",
        }
        kind = kinds.get(name.partition("-")[2], "DetectionModel")
        network: nn.Module = getattr(tasks, kind)(description, nc=len(COLOURS), verbose=False, **extra)
    network.names = dict(enumerate(COLOURS))
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return network.eval()
