"""Train a small detector of torchvision on generated images, prune it whole, and fine-tune it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

import secateur as sec
from secateur.detection import DetectorSettings, prune_detector

SIDE = 64


def draw(folder: Path, count: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Write images of a red or blue rectangle, labelled as for YOLO, and return those to train on."""
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [red, blue]\n")
    found = []
    for split, number in ((split, number) for split in ("val", "train") for number in range(count)):
        start, size, label = torch.randint(4, 28, (2,)), torch.randint(16, 32, (2,)), number % 2
        image = torch.rand(3, SIDE, SIDE) / 2
        edges = [*start.tolist(), *(start + size).tolist()]
        image[2 * label, edges[1] : edges[3], edges[0] : edges[2]] = 1
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy())
        pixels.save(folder / "images" / split / f"{number}.png")
        places = [label, *((start + size / 2) / SIDE).tolist(), *(size / SIDE).tolist()]
        (folder / "labels" / split / f"{number}.txt").write_text(" ".join(map(str, places)))
        found.append((image, {"boxes": torch.tensor([edges]).float(), "labels": torch.tensor([1 + label])}))
    return found[count:]


class Backbone(nn.Sequential):
    """Three layers; the last two give feature maps."""

    out_channels = (48, 48)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self[1](self[0](x))
        return {"0": x, "1": self[2](x)}


def main() -> None:
    """Train, prune to 40% of the MACs, show the mAP before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--images", 128), ("--epochs", 20)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 24, 5, 4, 2), nn.Conv2d(24, 48, 3, 2, 1), nn.Conv2d(48, 48, 3, 2, 1)
    layers = (nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()) for conv in convs)
    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.3, 0.5, 0.9])
    detector = SSD(Backbone(*layers), anchors, (SIDE, SIDE), num_classes=3)  # with the background
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    with tempfile.TemporaryDirectory() as folder:
        examples = draw(Path(folder), options.images)
        for _ in range(options.epochs):
            for numbers in torch.randperm(len(examples)).split(16):
                images, targets = zip(*(examples[number] for number in numbers), strict=True)
                optimizer.zero_grad()
                sum(detector(list(images), list(targets)).values()).backward()
                optimizer.step()
        recipe = sec.Recipe(finetune={"epochs": max(1, options.epochs // 4)}, distillation={"outputs": 1})
        settings, budget = DetectorSettings(image_size=SIDE), sec.Budget(macs=0.4)
        result = prune_detector(detector, f"{folder}/data.yaml", budget, f"{folder}/out", recipe, settings)
    print(f"{'network':<8} {'mAP50-95':>9} {'parameters':>11} {'MACs':>12}")
    for name, cost in (("before", result.pruning.cost_before), ("after", result.pruning.cost_after)):
        print(f"{name:<8} {result.metrics[name]['map']:>9.1%} {cost.params:>11,} {cost.macs:>12,}")


if __name__ == "__main__":
    main()
