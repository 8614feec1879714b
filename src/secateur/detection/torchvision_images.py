"""Read labelled images as detectors of torchvision take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from secateur.detection.labels import LabelledImage
from secateur.errors import DataError


@dataclass(frozen=True)
class SquareBatches:
    """Batches of normalised square images with their boxes; iterating again reads them again.

    Attributes:
        images: with their objects.
        classes: their names; labels count from 1, as 0 is the background.
        transform: of the detector, as :func:`square_transform` returns it.
        side: of the images in pixels.
        batch: images in a batch.
        device: where batches go.
        training: whether they are shuffled, and flipped horizontally at random. The last batch is left out
            then if it is smaller.
    """

    images: Sequence[LabelledImage]
    classes: Sequence[str]
    transform: nn.Module
    side: int
    batch: int
    device: torch.device
    training: bool = False

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self._size)
        return full + bool(rest and not self.training)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = torch.randperm(len(self.images)) if self.training else torch.arange(len(self.images))
        for numbers in order.split(self._size)[: len(self)]:
            pairs = [self._read(self.images[number]) for number in numbers.tolist()]
            prepared, targets = self.transform([image for image, _ in pairs], [target for _, target in pairs])
            yield {
                "images": self._padded(prepared.tensors).to(self.device),
                "targets": [
                    {name: value.to(self.device) for name, value in target.items()} for target in targets
                ],
            }

    @property
    def _size(self) -> int:
        return min(self.batch, len(self.images))

    def _read(self, labelled: LabelledImage) -> tuple[Tensor, dict[str, Tensor]]:
        """Read an image, values in [0, 1], and its boxes in its own pixels."""
        try:
            with Image.open(labelled.file) as opened:
                pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1) / 255
        except OSError as error:
            raise DataError(f"{labelled.file} cannot be read as an image: {error}") from error
        width, height = labelled.size
        boxes = torch.tensor([edges for _, *edges in labelled.objects], dtype=torch.float32).reshape(-1, 4)
        boxes = boxes * torch.tensor([pixels.shape[2] / width, pixels.shape[1] / height] * 2)
        if self.training and float(torch.rand(())) < 0.5:
            pixels = pixels.flip(2)
            boxes[:, [0, 2]] = pixels.shape[2] - boxes[:, [2, 0]]
        labels = [1 + self.classes.index(label) for label, *_ in labelled.objects]
        return pixels, {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}

    def _padded(self, images: Tensor) -> Tensor:
        """Pad images to the full size on the right and at the bottom."""
        return F.pad(images, (0, self.side - images.shape[3], 0, self.side - images.shape[2]))


def side_of(detector: Any, wanted: int | None) -> int:
    """Determine the side of the images: the wanted one, or the size that the detector always resizes to.

    Args:
        detector: of torchvision.
        wanted: in pixels.
    """
    fixed = detector.transform.fixed_size
    return wanted or (max(fixed) if fixed is not None else 640)


def square_transform(detector: Any, side: int) -> nn.Module:
    """Copy the transform of a detector so that the images that it resizes fit into a square.

    Args:
        detector: of torchvision; not changed.
        side: of the square, in pixels.
    """
    transform: Any = deepcopy(detector.transform).eval()
    if transform.fixed_size is not None:
        transform.fixed_size = (side, side)
    else:
        transform.min_size, transform.max_size = (side,), side
    found: nn.Module = transform
    return found
