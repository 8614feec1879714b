"""Variations of training pictures, decided by numbers drawn beforehand.

All random numbers of an epoch are drawn at once from its seed, one row a picture. What happens to a picture
thus depends on neither the batch size nor the order, and an interrupted epoch can be repeated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur._torchvision import v2
from secateur.data.settings import Augmentation

DRAWS = 5
"""Uniform numbers that a picture needs: area, aspect, down, right, mirrored."""


def vary(picture: Tensor, draws: Tensor, how: Augmentation, size: tuple[int, int]) -> Tensor:
    """A variation of a picture at the size that the network takes.

    Args:
        picture: uint8, shape (C, h, w).
        draws: uniform numbers in [0, 1), shape (5,).
        how: what may be varied.
        size: height and width to return.

    Returns:
        uint8, shape (C, height, width).

    >>> picture = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
    >>> vary(picture, torch.tensor([0, 0, 0, 0, 0.9]), Augmentation(flip=True), (4, 4))[0, 0]
    tensor([3, 2, 1, 0], dtype=torch.uint8)
    """
    area, aspect, down, right, mirrored = draws.tolist()
    if how.area is not None:
        top, left, height, width = crop_box(picture.shape[-2:], how, area, aspect, down, right)
        picture = v2.functional.resized_crop(picture, top, left, height, width, list(size), antialias=True)
    else:
        picture = middle(picture, size)
    if how.shift:
        picture = _shifted(picture, how.shift, down, right)
    return picture.flip(-1) if how.flip and mirrored >= 0.5 else picture


def crop_box(
    shape: tuple[int, ...], how: Augmentation, area: float, aspect: float, down: float, right: float
) -> tuple[int, int, int, int]:
    """Where a random crop lies.

    Args:
        shape: height and width of the picture.
        how: the bounds of area and aspect.
        area: uniform number that decides the area, linearly.
        aspect: uniform number that decides the ratio of the sides, on a logarithmic scale.
        down: uniform number that decides the place from above.
        right: uniform number that decides the place from the left.

    Returns:
        Top, left, height and width in pixels.

    >>> crop_box((100, 80), Augmentation(area=(0.25, 1.0)), area=0.0, aspect=0.5, down=0.0, right=0.99)
    (0, 35, 45, 45)
    """
    height, width = shape
    low, high = how.area or (1.0, 1.0)
    pixels = height * width * (low + area * (high - low))
    ratio = math.exp((2 * aspect - 1) * math.log(how.aspect))
    wide = min(width, max(1, round(math.sqrt(pixels * ratio))))
    tall = min(height, max(1, round(math.sqrt(pixels / ratio))))
    return int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide


def middle(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of a picture, a view, shape (C, *size).

    >>> middle(torch.zeros(3, 10, 12), (8, 8)).shape
    torch.Size([3, 8, 8])
    """
    top, left = ((have - want) // 2 for have, want in zip(picture.shape[-2:], size, strict=True))
    return picture[:, top : top + size[0], left : left + size[1]]


def _shifted(picture: Tensor, most: int, down: float, right: float) -> Tensor:
    height, width = picture.shape[-2:]
    padded = torch.nn.functional.pad(picture, (most, most, most, most))
    top, left = int(down * (2 * most + 1)), int(right * (2 * most + 1))
    return padded[:, top : top + height, left : left + width]
