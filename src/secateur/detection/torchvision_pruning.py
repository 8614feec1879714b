"""Read labelled images for a detector of torchvision, check its classes, and measure its mAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from secateur.detection.head_outputs import HeadOutputs
from secateur.detection.labels import DetectionData, LabelledImage
from secateur.detection.mean_ap import mean_average_precision
from secateur.detection.settings import DetectorSettings
from secateur.detection.torchvision_images import SquareBatches, side_of, square_transform
from secateur.devices import device_of
from secateur.errors import UsageError
from secateur.graph.capture.program import mode_of
from secateur.recipes import Callback, LatencyOptions, Recipe, Training
from secateur.training.events import report_progress
from secateur.training.metrics import MAP
from secateur.training.resume import Journal


@dataclass(frozen=True)
class DetectorJudge:
    """Read images for a detector, and measure it.

    Attributes:
        detector: of torchvision; only its transform and its device are used.
        labelled: images with their objects.
        settings: size of the images and of the batches.
        callbacks: receive progress.
    """

    name = MAP.name
    loss = None

    detector: nn.Module
    labelled: DetectionData
    settings: DetectorSettings
    callbacks: Sequence[Callback] = ()

    def batches(self, split: str, *, training: bool = False, most: int | None = None) -> SquareBatches:
        """Read the images of a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            training: whether they are shuffled and flipped.
            most: how many images to read.
        """
        side = side_of(self.detector, self.settings.image_size)
        images: Sequence[LabelledImage] = list(islice(self.labelled.splits[split], most))
        return SquareBatches(
            images=images,
            classes=self.labelled.names,
            transform=square_transform(self.detector, side),
            side=side,
            batch=self.settings.batch,
            device=device_of(self.detector),
            training=training,
        )

    @property
    def images(self) -> dict[str, int]:
        """Return the number of images by split."""
        return {split: len(found) for split, found in self.labelled.splits.items()}

    @property
    def skipped(self) -> Sequence[str]:
        """List what could not be used: file and reason."""
        return self.labelled.broken

    @property
    def has_test(self) -> bool:
        """Return whether there are test images."""
        return bool(self.labelled.splits["test"])

    def training(self, recipe: Recipe | None = None, journal: Journal | None = None) -> Training:
        """Collect batches and the metric for :func:`secateur.prune`.

        Args:
            recipe: makes no difference here.
            journal: is not needed: the training loop is that of Secateur.
        """
        calibration = self.batches("train", most=self.settings.calibration_images)
        images: torch.Tensor = next(iter(calibration))["images"]
        return Training(
            batches=self.batches("train", training=True),
            calibration=calibration,
            metric=self,
            check_inputs={"images": images[:2]},
            latency=LatencyOptions(inputs={"images": images[:1]}),
        )

    def describe(self) -> str:
        """Format the names of the classes and the size of the images."""
        side = side_of(self.detector, self.settings.image_size)
        return f"labels from 1: {', '.join(self.labelled.names)}; images of {side} pixels"

    def __call__(self, heads: nn.Module) -> float:
        """Return the mAP of a network on the validation images."""
        return self.evaluate(heads)["map"]

    def evaluate(self, heads: nn.Module, split: str = "val") -> dict[str, float]:
        """Measure ``map`` and ``map50`` of a detector on the images of a split.

        Args:
            heads: of the detector.
            split: ``train``, ``val`` or ``test``.
        """
        assert isinstance(heads, HeadOutputs)
        found, expected, batches = [], [], self.batches(split)
        report_progress(self.callbacks, "measuring mAP", 0, len(batches))
        with mode_of(heads, training=False), torch.no_grad():
            for number, batch in enumerate(batches):
                found += heads.detect(batch["images"])
                expected += batch["targets"]
                report_progress(self.callbacks, "measuring mAP", number + 1, len(batches))
        return mean_average_precision(found, expected)


def check_torchvision(detector: nn.Module, data: DetectionData, settings: DetectorSettings) -> None:
    """Check settings and data for a detector of torchvision, before anything is written.

    Args:
        detector: of torchvision; not changed.
        data: labelled images.
        settings: images.

    Raises:
        UsageError: there are settings of ultralytics, or the network has other classes than the data.
    """
    if settings.options:
        raise UsageError(
            "detector.options: no effect on detectors of torchvision; set finetune.epochs, "
            "finetune.optimizer and the like"
        )
    image = next(iter(DetectorJudge(detector, data, settings).batches("train", most=1)))["images"]
    with mode_of(detector, training=False):
        _check_classes(HeadOutputs(detector), image, data)


def _check_classes(heads: HeadOutputs, image: torch.Tensor, data: DetectionData) -> None:
    """Compare the classes of a network, the background included, with those of the data.

    Raises:
        UsageError: there are others.
    """
    with torch.no_grad():
        found: Mapping[str, Any] = heads(image)
    scores = found["cls_logits"] if "cls_logits" in found else found["box"][0]
    if scores.shape[-1] != len(data.names) + 1:
        raise UsageError(
            f"the network has {scores.shape[-1]} classes with the background, the data has "
            f"{len(data.names)} ({', '.join(data.names)}) and the background; train the unpruned network on "
            "these data first, or name its classes with detector.classes"
        )
