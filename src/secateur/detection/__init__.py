"""Prune detectors of ultralytics, from weights to mAP.

Images, labels, loss and training are those of ultralytics, which is imported on use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur._lazy import lazy_names

if TYPE_CHECKING:
    from secateur.detection.files import open_detector, save_detector
    from secateur.detection.labels import convert_labels
    from secateur.detection.pruning import DetectorResult, prune_detector
    from secateur.detection.settings import DetectorSettings

__all__ = [
    "DetectorResult",
    "DetectorSettings",
    "convert_labels",
    "open_detector",
    "prune_detector",
    "save_detector",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "files": "open_detector save_detector",
        "labels": "convert_labels",
        "pruning": "DetectorResult prune_detector",
        "settings": "DetectorSettings",
    },
)
