"""Define the settings of a data set, as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.errors import UsageError
from secateur.models import InputSpec

_SMALL = 64  # pixels; smaller images are shifted, not enlarged


@dataclass(frozen=True)
class Augmentation:
    """Choose how training images are augmented in each epoch.

    Attributes:
        area: share of the image that a random crop shows, least and most; ``None`` for no crop.
        aspect: widest ratio of the sides of the crop (and, inverted, the narrowest).
        shift: largest number of pixels by which an image is moved in either direction; the border is black.
        flip: whether an image is flipped, with probability 1/2.

    >>> Augmentation.suited_to(InputSpec((3, 32, 32))).shift
    4
    """

    area: tuple[float, float] | None = None
    aspect: float = 4 / 3
    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        low, high = self.area or (1.0, 1.0)
        if not 0 < low <= high <= 1:
            raise UsageError(
                f"a crop shows between {low} and {high} of the image: give 0 < least <= most <= 1"
            )
        if self.aspect < 1 or self.shift < 0:
            raise UsageError(
                f"aspect is {self.aspect} and must be at least 1; shift is {self.shift}, at least 0"
            )

    @classmethod
    def suited_to(cls, spec: InputSpec) -> Augmentation:
        """Choose random crops for photographs, small shifts for small images, flips for both."""
        side = min(spec.size[1:])
        return cls(shift=side // 8, flip=True) if side <= _SMALL else cls(area=(0.35, 1.0), flip=True)


@dataclass(frozen=True)
class DataSettings:
    """Choose how images are read and batched.

    Attributes:
        batch_size: images in a batch.
        seed: determines the order and the augmentation, but not which images are held out.
        held_out: share of ``train/`` that is held out for validation if there is no ``val/``; 0 to train on
            all images, without validation.
        augmentation: of training images; ``None`` chooses one by their size.
        mixup: alpha of mixup (arXiv 1710.09412): each training image and its class are blended with another,
            with one weight for each batch, drawn from Beta(alpha, alpha); 0 for no mixup. If not given, 1
            where a teacher answers and there are fewer than 1,000 images, since it says something new about
            each mixture (arXiv 2106.05237), and otherwise 0.
        strict: whether an unreadable image is an error; otherwise it is left out.
        memory: largest number of bytes for decoded images; a larger set is decoded again in each epoch.
    """

    batch_size: int = 32
    seed: int = 0
    held_out: float = 0.1
    augmentation: Augmentation | None = None
    mixup: float | None = None
    strict: bool = False
    memory: int = 2 << 30

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size} must be at least 1")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} must not be negative")
        if self.mixup is not None and not 0 <= self.mixup < math.inf:
            raise UsageError(f"mixup {self.mixup} must be a number of at least 0")
        if not 0 <= self.held_out < 1:
            raise UsageError(f"the held-out share {self.held_out} must be at least 0 and below 1")


def shorter_side(spec: InputSpec) -> int:
    """Return the pixels of the shorter side of a decoded image, whose center the network receives.

    Photographs are cropped to seven eighths, as is usual since AlexNet; small images not at all.

    >>> shorter_side(InputSpec()), shorter_side(InputSpec((3, 32, 32)))
    (256, 32)
    """
    side = max(spec.size[1:])
    return side if side <= _SMALL else round(side * 8 / 7)
