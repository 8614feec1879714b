"""Settings of detectors: size of the images, batches, and what else the trainer of ultralytics takes."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from secateur.settings import Settings


class DetectorSettings(Settings):
    """Choose how images of a detector are read and how it is trained by ultralytics.

    Attributes:
        image_size: side of the images in pixels, a multiple of 32, the stride of the coarsest feature map.
        batch: images in a batch.
        calibration_images: training images on which scores, width curves and reconstruction are computed.
        options: further arguments of ultralytics, such as ``{"lr0": 0.002, "optimizer": "AdamW"}``.
    """

    image_size: int = Field(default=640, ge=32, multiple_of=32)
    batch: int = Field(default=16, ge=1)
    calibration_images: int = Field(default=128, ge=2)
    options: dict[str, Any] = Field(default_factory=dict)
