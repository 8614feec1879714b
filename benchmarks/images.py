"""Images of the benchmarks, from folders below the one that ``SECATEUR_DATA`` names."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from secateur.data import Augmentation, ImageData
from secateur.data.loader import Loader, normalized
from secateur.models import InputSpec

SPEC = InputSpec((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Images = tuple[Tensor, Tensor]
"""Normalised images, shape (N, 3, H, W), and their classes, shape (N,)."""


def data_path(name: str | Path) -> Path:
    """Return a file or folder of the data folder.

    Raises:
        SystemExit: ``SECATEUR_DATA`` is not set, or there is nothing of this name.
    """
    folder = os.environ.get("SECATEUR_DATA")
    if folder is None:
        raise SystemExit(f"{name}: set SECATEUR_DATA to the folder that holds the data of the benchmarks")
    path = Path(folder) / name
    if not path.exists():
        raise SystemExit(f"{path} does not exist; SECATEUR_DATA is {folder}")
    return path


def raw(folder: Path, count: int, seed: int) -> Images:
    """Draw images at random from a folder with a folder per class: uint8, and their classes."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(file, number) for number, path in enumerate(classes) for file in sorted(path.iterdir())]
    chosen = random.Random(seed).sample(files, min(count, len(files)))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in chosen])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([number for _, number in chosen])


def images(folder: Path, count: int, seed: int) -> Images:
    """Draw images as :func:`raw` does, normalised."""
    pixels, classes = raw(folder, count, seed)
    return normalized(pixels, SPEC), classes


def batches(data: Images, size: int) -> list[Images]:
    """Split images into batches."""
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def joined(parts: Iterable[Any]) -> Images:
    """Join batches of images."""
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    return x, y


def draw(data: ImageData, examples: int, seed: int) -> Sequence[Images]:
    """Draw training images at random, without augmentation, in batches of 64."""
    x, y = joined(data.training_batches(augment=False))
    chosen = torch.tensor(random.Random(seed).sample(range(len(y)), min(examples, len(y))))
    return batches((x[chosen], y[chosen]), 64)


def training(data: Images, size: int, seed: int, mixup: float = 0.0) -> Loader:
    """Load images of :func:`raw` in a new order each epoch, shifted, flipped, and mixed if asked for."""
    return Loader(
        list(data[0]),
        data[1],
        SPEC,
        size,
        seed=seed,
        shuffle=True,
        augmentation=Augmentation.suited_to(SPEC),
        mixup=mixup,
        drop_last=True,
    )


@torch.inference_mode()
def accuracy(model: nn.Module, data: Images) -> float:
    """Compute the share of images that are classified correctly, in percent, on the network's device."""
    device = next(model.parameters()).device
    right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in batches(data, 250))
    return 100 * right / len(data[1])
