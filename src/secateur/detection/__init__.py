"""Prune detectors: those of ultralytics from weights to mAP, and those of torchvision as whole networks.

Images, labels, loss and training of ultralytics are its own; it is imported on use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur._lazy import lazy_names

if TYPE_CHECKING:
    from secateur.detection.files import open_detector, save_detector
    from secateur.detection.head_outputs import HeadOutputs
    from secateur.detection.labels import convert_labels
    from secateur.detection.pruning import prune_detector
    from secateur.detection.results import DetectorResult
    from secateur.detection.settings import DetectorSettings

__all__ = [
    "DetectorResult",
    "DetectorSettings",
    "HeadOutputs",
    "convert_labels",
    "open_detector",
    "prune_detector",
    "save_detector",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "files": "open_detector save_detector",
        "head_outputs": "HeadOutputs",
        "labels": "convert_labels",
        "pruning": "prune_detector",
        "results": "DetectorResult",
        "settings": "DetectorSettings",
    },
)
