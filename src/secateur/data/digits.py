"""Load the handwritten digits that come with scikit-learn: real images without a download.

1,797 grey images of 8 by 8 pixels by 43 writers (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998), of which scikit-learn carries the test part.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from secateur._torchvision import v2
from secateur.data.dataset import ImageData, Split
from secateur.data.folder import held_out_indices
from secateur.data.settings import Augmentation, DataSettings
from secateur.integrations.libraries import library
from secateur.models import InputSpec, ModelSpec

_TEST_SHARE = 0.25
_HELD_OUT_SHARE = 0.15
_DARKEST = 16


def digits(spec: InputSpec | None = None, settings: DataSettings | None = None) -> ImageData:
    """Load handwritten digits, a quarter of them for testing.

    Which images are in which part does not depend on the seed, so that results can be compared.

    Args:
        spec: size and normalisation; 8 by 8 pixels in grey if not given. Images are enlarged and grey
            is repeated as needed.
        settings: batch size, seed and the like; digits are augmented only if the settings say how.

    Returns:
        The data set.

    Raises:
        UsageError: scikit-learn, which holds the digits, is not installed.

    >>> data = digits()
    >>> len(data.train), len(data.validation), len(data.test)
    (1146, 201, 450)
    """
    spec = spec or ModelSpec.parse("secateur:digits").input
    settings = settings or DataSettings()
    raw, labels = library("sklearn.datasets").load_digits(return_X_y=True)
    images = _images(np.asarray(raw), spec)
    targets = tuple(int(label) for label in labels)
    parts = _parts(targets)
    readers = {name: partial(_split, name, images, targets, indices) for name, indices in parts.items()}
    classes = tuple(str(digit) for digit in range(10))
    # A mirrored digit is not a digit, so nothing is augmented by default.
    return ImageData(classes, spec, settings, settings.augmentation or Augmentation(), readers)


def _images(raw: np.ndarray, spec: InputSpec) -> Tensor:
    """Convert values 0 to 16, shape (N, 64), to uint8, shape (N, C, H, W)."""
    grey = torch.from_numpy((raw * (255 / _DARKEST)).round().astype(np.uint8)).view(-1, 1, 8, 8)
    channels, height, width = spec.size
    if (height, width) != (8, 8):
        grey = v2.functional.resize(grey, [height, width], antialias=True)
    return grey.expand(-1, channels, -1, -1)


def _parts(targets: tuple[int, ...]) -> dict[str, list[int]]:
    test = set(held_out_indices(targets, _TEST_SHARE))
    rest = [index for index in range(len(targets)) if index not in test]
    places = held_out_indices(tuple(targets[index] for index in rest), _HELD_OUT_SHARE)
    held = {rest[place] for place in places}
    return {
        "train": [index for index in rest if index not in held],
        "val": sorted(held),
        "test": sorted(test),
    }


def _split(name: str, images: Tensor, targets: tuple[int, ...], indices: list[int]) -> Split:
    return Split(name, list(images[indices]), torch.tensor([targets[index] for index in indices]))
