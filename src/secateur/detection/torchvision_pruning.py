"""Prune a detector of torchvision: score, cut, reconstruct, fine-tune on its own losses, measure mAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.budget import Budget
from secateur.detection.head_outputs import HeadOutputs
from secateur.detection.labels import DetectionData, LabelledImage
from secateur.detection.mean_ap import mean_average_precision
from secateur.detection.results import DetectorResult, in_words
from secateur.detection.settings import DetectorSettings
from secateur.detection.torchvision_images import SquareBatches, side_of, square_transform
from secateur.devices import device_of
from secateur.errors import UsageError
from secateur.graph.capture.program import mode_of
from secateur.graph.cutting.tensors import copy_with
from secateur.recipes import Callback, LatencyOptions, Recipe, Training, prune
from secateur.training.events import report_note, report_progress
from secateur.training.metrics import MAP
from secateur.training.random_state import seeded


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

    def training(self) -> Training:
        """Collect batches and the metric for :func:`secateur.prune`."""
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


def prune_torchvision(
    detector: nn.Module,
    data: DetectionData,
    budget: Budget,
    file: Path,
    recipe: Recipe,
    settings: DetectorSettings,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
) -> DetectorResult:
    """Prune a detector of torchvision whole, and fine-tune it on its own losses.

    Arguments, results and errors are those of :func:`secateur.detection.prune_detector`, apart from two. The
    caller has called :func:`check_torchvision`.

    Args:
        detector: of torchvision.
        data: labelled images.
        budget: what may remain.
        file: that the result names; the caller writes it.
        recipe: how to prune and train.
        settings: images.
        callbacks: receive reports.
        seed: of all random numbers.
    """
    heads = HeadOutputs(copy_with(detector, {})).eval()
    judge = DetectorJudge(detector, data, settings, callbacks)
    with seeded(seed):
        training = judge.training()
        report_note(callbacks, judge.describe())
        before = judge.evaluate(heads)
        report_note(callbacks, f"before: {in_words(before)}")
        example = training.check_inputs
        assert example is not None
        result = prune(heads, example, budget, batches=training, recipe=recipe, callbacks=callbacks)
        small = result.model.eval()
        assert isinstance(small, HeadOutputs)
        after = judge.evaluate(small)
    report_note(callbacks, f"after: {in_words(after)}")
    cut = next((fit.start.figures for fit in reversed(result.fits) if fit.start is not None), after)
    return DetectorResult(
        small.detector().eval(), result, {"before": before, "cut": cut, "after": after}, file
    )


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
