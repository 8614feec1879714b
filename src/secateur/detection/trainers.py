"""Train with the trainers of ultralytics and keep the architecture of a pruned network.

The library's own trainers build the network from its description again, which undoes a cut. This module
imports ultralytics; import it only where that is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils import DEFAULT_CFG

from secateur.detection.data import beside, check_classes
from secateur.errors import UsageError

__all__ = [
    "PrunedClassificationTrainer",
    "PrunedDetectionTrainer",
    "PrunedOBBTrainer",
    "PrunedPoseTrainer",
    "PrunedRTDETRTrainer",
    "PrunedSegmentationTrainer",
]


_LEAST_UPDATES = 1000
"""Steps of the optimizer for which the batches of several are not added up."""

_WARMUP = 0.1
"""Longest warm-up, as a share of the training."""


class KeepsArchitecture:
    """Train the given network itself, in place of one that is built from its description.

    ultralytics adds up the gradients of 64 images for a step, and warms up for three epochs, whatever the
    number of images and epochs. Here, a short training takes more steps, and warms up for a tenth of it at
    most. ``nbs`` and ``warmup_epochs`` remain as they are if they are given.

    Args:
        cfg: the arguments of ultralytics, its defaults if not given.
        overrides: arguments that were given.
        _callbacks: of ultralytics.
    """

    data: dict[str, Any]
    args: Any

    def __init__(
        self, cfg: Any = None, overrides: dict[str, Any] | None = None, _callbacks: Any = None
    ) -> None:
        given = dict(overrides or {})
        super().__init__(DEFAULT_CFG if cfg is None else cfg, overrides, _callbacks)  # type: ignore[call-arg]
        self.add_callback("on_pretrain_routine_end", partial(fit_to_length, given=given))  # type: ignore[attr-defined]

    def get_dataset(self) -> dict[str, Any]:
        """Read the data; a relative ``path`` in the data file is looked for beside the file first."""
        self.args.data = beside(str(self.args.data), Path(self.args.save_dir))
        return super().get_dataset()  # type: ignore[misc,no-any-return]

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Return the network that was given, ready for training.

        Args:
            cfg: its description, which is not used.
            weights: the network.
            verbose: not used.

        Raises:
            UsageError: there is no network, or the data has other classes.
        """
        if not isinstance(weights, nn.Module):
            raise UsageError(
                "a pruned network cannot be built from its description: leave pretrained=False out, and "
                "start from its .pt file"
            )
        check_classes(weights, self.data, self.args.data)
        for parameter in weights.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return weights.float()


def fit_to_length(trainer: Any, given: Mapping[str, Any]) -> None:
    """Let a short training take more steps, and warm up for a tenth of it at most.

    Args:
        trainer: of ultralytics, set up; changed.
        given: arguments that the user gave, which remain.
    """
    if "nbs" not in given:
        batches = trainer.epochs * len(trainer.train_loader)
        trainer.accumulate = max(1, min(trainer.accumulate, batches // _LEAST_UPDATES))
        trainer.args.nbs = trainer.accumulate * trainer.batch_size
    if "warmup_epochs" not in given:
        trainer.args.warmup_epochs = min(trainer.args.warmup_epochs, _WARMUP * trainer.epochs)


class PrunedDetectionTrainer(KeepsArchitecture, DetectionTrainer):
    """Train a pruned detector: ``YOLO("pruned.pt").train(trainer=PrunedDetectionTrainer, ...)``."""


class PrunedSegmentationTrainer(KeepsArchitecture, SegmentationTrainer):
    """Train a pruned network for instance segmentation."""


class PrunedPoseTrainer(KeepsArchitecture, PoseTrainer):  # type: ignore[misc]
    """Train a pruned network for key points."""


class PrunedOBBTrainer(KeepsArchitecture, OBBTrainer):  # type: ignore[misc]
    """Train a pruned detector of rotated boxes."""


class PrunedClassificationTrainer(KeepsArchitecture, ClassificationTrainer):
    """Train a pruned classifier."""


class PrunedRTDETRTrainer(KeepsArchitecture, RTDETRTrainer):
    """Train a pruned RT-DETR."""


TRAINERS: dict[str, type[BaseTrainer]] = {
    "detect": PrunedDetectionTrainer,
    "segment": PrunedSegmentationTrainer,
    "pose": PrunedPoseTrainer,
    "obb": PrunedOBBTrainer,
    "classify": PrunedClassificationTrainer,
}
"""Trainers by task."""


def trainer_for(network: nn.Module) -> type[BaseTrainer]:
    """Choose the trainer of a pruned network.

    Args:
        network: a network of ultralytics.

    Raises:
        UsageError: there is no trainer for its task.
    """
    if type(network).__name__ == "RTDETRDetectionModel":
        return PrunedRTDETRTrainer
    task = getattr(network, "task", None)
    if task not in TRAINERS:
        raise UsageError(
            f"networks for the task {task!r} cannot be trained here; tasks are {', '.join(TRAINERS)}"
        )
    return TRAINERS[str(task)]
