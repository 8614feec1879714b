"""Few images that a teacher answers are mixed, unless the user says otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from secateur.data import DataSettings, InputSpec, open_data
from secateur.data.dataset import FEW_IMAGES, ImageData

SPEC = InputSpec((1, 8, 8), (0.0,), (1.0,))


def data_of(count: int, mixup: float | None) -> ImageData:
    data = open_data("digits", SPEC, DataSettings(mixup=mixup))
    whole = data.train
    few = replace(whole, images=tuple(whole.images)[:count], targets=whole.targets[:count])
    return replace(data, readers={**data.readers, "train": lambda: few})


@pytest.mark.parametrize(
    ("count", "mixup", "taught", "expected"),
    [
        (100, None, True, 1.0),
        (100, None, False, 0.0),
        (100, 0.0, True, 0.0),
        (100, 0.3, False, 0.3),
        (FEW_IMAGES, None, True, 0.0),
    ],
)
def test_which_images_are_mixed(count: int, mixup: float | None, taught: bool, expected: float) -> None:
    data = data_of(count, mixup)
    assert data.training_batches(taught=taught).mixup == expected
    assert data.training_batches(augment=False, taught=taught).mixup == 0.0
    _, targets = next(iter(data.training_batches(taught=taught)))
    assert (targets.dtype == torch.float32) == (expected > 0)
