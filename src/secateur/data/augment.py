"""Augment training images with the transforms of torchvision.

The transforms draw from PyTorch's generator. It is seeded for each image and restored afterwards, so the
result does not depend on the batch size, the order or the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from secateur._torchvision import v2
from secateur.data.settings import Augmentation

Transform = Callable[[Tensor], Tensor]


def make_transform(how: Augmentation, size: tuple[int, int]) -> Transform:
    """Build the random transform of one training image.

    Args:
        how: which random changes are allowed.
        size: height and width of the result.

    Returns:
        A function from uint8, shape (C, h, w), to uint8, shape (C, *size).

    >>> image = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
    >>> make_transform(Augmentation(), (2, 2))(image)[0]
    tensor([[ 5,  6],
            [ 9, 10]], dtype=torch.uint8)
    """
    steps: list[Transform] = []
    if how.area is not None:
        ratio = (1 / how.aspect, how.aspect)
        steps.append(v2.RandomResizedCrop(size, scale=how.area, ratio=ratio, antialias=True))
    else:
        steps.append(lambda image: center(image, size))
    if how.shift:
        steps.append(v2.RandomCrop(size, padding=how.shift))
    if how.flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)  # type: ignore[no-any-return]


def vary(images: Sequence[Tensor], seeds: Sequence[int], transform: Transform) -> list[Tensor]:
    """Apply a random transform to images, each with its seed.

    Args:
        images: uint8, shape (C, h, w) each.
        seeds: one for each image, in [0, 2**32).
        transform: draws from PyTorch's generator of the CPU.
    """
    varied = []
    with _generator_restored():
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            varied.append(transform(image))
    return varied


def mix(
    batch: tuple[Tensor, Tensor], partners: tuple[Tensor, Tensor], alpha: float, classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Blend each image of a batch, and its class, with those of a partner (mixup, arXiv 1710.09412).

    Args:
        batch: images, shape (B, C, H, W), and their classes, int64, shape (B,).
        partners: as many images and classes.
        alpha: the weight of the image itself is drawn from Beta(alpha, alpha), once for the batch.
        classes: number of classes.
        seed: of the weight, in [0, 2**32).

    Returns:
        Images of the same shape, and weights of the classes, float32, shape (B, classes), which sum to one.

    >>> cat, dog = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    >>> image, weights = mix((cat, torch.tensor([0])), (dog, torch.tensor([1])), 1.0, classes=2, seed=0)
    >>> bool(image.item() == weights[0, 1])
    True
    """
    # ``MixUp`` blends each example with the one before it, so partners go in front of their examples.
    inputs, targets = (torch.stack(pair, 1).flatten(0, 1) for pair in zip(partners, batch, strict=True))
    with _generator_restored():
        torch.default_generator.manual_seed(seed)
        mixed, weights = v2.MixUp(alpha=alpha, num_classes=classes)(inputs, targets)
    return mixed[1::2], weights[1::2]


def center(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a view of the center of an image, shape (C, *size).

    >>> center(torch.zeros(3, 10, 12), (8, 8)).shape
    torch.Size([3, 8, 8])
    """
    top, left = ((have - want) // 2 for have, want in zip(image.shape[-2:], size, strict=True))
    return image[:, top : top + size[0], left : left + size[1]]


@contextmanager
def _generator_restored() -> Iterator[None]:
    """Restore PyTorch's CPU generator after a block."""
    with torch.random.fork_rng(devices=[]):
        yield
