"""What the benchmarks on CIFAR-10 share: pictures, the network, and which channels may go.

``--data`` is a folder with ``train`` and ``test``, in each a folder of pictures per class.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import secateur as sec
from secateur.data import Augmentation
from secateur.data.loader import Loader, normalized
from secateur.graph import Role
from secateur.models import InputSpec

SPEC = InputSpec((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Pictures = tuple[Tensor, Tensor]
"""Normalised pictures, shape (N, 3, 32, 32), and their classes."""


def raw(folder: Path, count: int, seed: int) -> Pictures:
    """Pictures drawn at random, uint8, shape (N, 3, 32, 32), and their classes."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(file, number) for number, path in enumerate(classes) for file in sorted(path.iterdir())]
    chosen = random.Random(seed).sample(files, min(count, len(files)))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in chosen])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([number for _, number in chosen])


def pictures(folder: Path, count: int, seed: int) -> Pictures:
    """The same, as the network expects them."""
    pixels, classes = raw(folder, count, seed)
    return normalized(pixels, SPEC), classes


def batches(data: Pictures, size: int) -> list[Pictures]:
    """The pictures, some at a time."""
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def joined(parts: Iterable[Any]) -> Pictures:
    """All pictures of some batches."""
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    return x, y


def training(data: Pictures, size: int, seed: int, mixup: float = 0.0) -> Loader:
    """Pictures as :func:`raw` gives them, in a new order each epoch, shifted, mirrored, perhaps blended."""
    how = Augmentation.suited_to(SPEC)
    return Loader(
        list(data[0]),
        data[1],
        SPEC,
        size,
        seed=seed,
        shuffle=True,
        augmentation=how,
        mixup=mixup,
        drop_last=True,
    )


@torch.inference_mode()
def accuracy(model: nn.Module, data: Pictures) -> float:
    """Share of the pictures that are classified rightly, in percent, on the network's device."""
    place = next(model.parameters()).device
    right = sum(int((model(x.to(place)).argmax(1).cpu() == y).sum()) for x, y in batches(data, 250))
    return 100 * right / len(data[1])


@dataclass(eq=False)
class Setting:
    """A network, its graph, and the pictures that all ways of cutting it may look at.

    Attributes:
        model: in evaluation mode.
        graph: its channel graph.
        pictures: a few hundred, without augmentation.
        inner: cut only channels inside residual blocks, not the residual streams.
    """

    model: nn.Module
    graph: sec.ChannelGraph
    pictures: Pictures
    inner: bool

    @property
    def batches(self) -> list[Pictures]:
        """The pictures, 64 at a time."""
        return batches(self.pictures, 64)

    @property
    def left_alone(self) -> list[str]:
        """The residual streams, unless they are cut too."""
        streams = [group.name for group in self.graph.prunable if len(group.roles(Role.PRODUCER)) > 1]
        return streams if self.inner else []
