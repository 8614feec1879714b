"""Load images in classes: folders of photographs, and the digits of scikit-learn.

>>> data = digits()
>>> inputs, targets = next(iter(data.training_batches()))
>>> inputs.shape, targets.shape
(torch.Size([32, 1, 8, 8]), torch.Size([32]))
"""

from __future__ import annotations

from pathlib import Path

from secateur.data.dataset import ImageData, Split, open_folder
from secateur.data.digits import digits
from secateur.data.loader import Loader
from secateur.data.settings import Augmentation, DataSettings
from secateur.models import InputSpec

__all__ = [
    "Augmentation",
    "DataSettings",
    "ImageData",
    "Loader",
    "Split",
    "digits",
    "open_data",
    "open_folder",
]


def open_data(
    source: str | Path, spec: InputSpec, settings: DataSettings | None = None, *, training: bool = True
) -> ImageData:
    """Open a data set by the name that a user gave.

    Args:
        source: a folder as in :func:`open_folder`; or ``digits``, unless there is a folder of that name.
        spec: size and normalisation that the network expects.
        settings: batch size, seed and the like.
        training: whether ``train/`` is needed.

    Raises:
        DataError: see :func:`open_folder`.

    >>> len(open_data("digits", InputSpec((3, 16, 16))).classes)
    10
    """
    if str(source) == "digits" and not Path(source).is_dir():
        return digits(spec, settings)
    return open_folder(source, spec, settings, training=training)
