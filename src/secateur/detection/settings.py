"""Define the settings of detectors: images, batches, classes, and further arguments of ultralytics."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from secateur.settings import Settings


class DetectorSettings(Settings):
    """Choose how images of a detector are read, and how ultralytics trains it.

    Attributes:
        image_size: side of the square images in pixels, a multiple of 32, the stride of the coarsest feature
            map; if not given, that of the detector, or 640 (224 for classifiers) if it takes any size.
        batch: images in a batch.
        calibration_images: training images on which scores, width curves and reconstruction are computed.
        classes: names of the classes of a detector that is built by name, in its order (torchvision counts
            them from 1); if not given, those of its checkpoint or of the data.
        options: further arguments of ultralytics, such as ``{"lr0": 0.002, "optimizer": "AdamW"}``.
    """

    image_size: int | None = Field(default=None, ge=32, multiple_of=32)
    batch: int = Field(default=16, ge=1)
    calibration_images: int = Field(default=128, ge=2)
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)
