"""Open the images of a job, and report how many there are and which cannot be read."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.data import DataSettings, ImageData, open_data
from secateur.jobs.settings import DataChoice
from secateur.models import InputSpec
from secateur.recipes import Callback
from secateur.training.events import report_note, report_progress

_SHOWN = 10


def open_images(choice: DataChoice, spec: InputSpec, seed: int, *, training: bool = True) -> ImageData:
    """Open the data set that a user names; nothing is decoded yet.

    Args:
        choice: the data set, and how it is read.
        spec: the inputs that the network expects.
        seed: determines order and augmentation.
        training: whether there must be training images.

    Raises:
        DataError: it is missing, empty or inconsistent.
    """
    settings = DataSettings(
        batch_size=choice.batch_size,
        seed=seed,
        held_out=choice.held_out,
        mixup=choice.mixup,
        strict=choice.strict,
    )
    return open_data(choice.source, spec, settings, training=training)


def report_skipped(data: ImageData, callbacks: Sequence[Callback]) -> None:
    """Report the images that could not be read.

    Args:
        data: the data set; the splits in use have been read.
        callbacks: receive a note for each of the first few images, and one with the count.
    """
    skipped = data.skipped
    for line in skipped[:_SHOWN]:
        report_note(callbacks, f"left out {line}")
    if skipped:
        more = f", of which the first {_SHOWN} are named above" if len(skipped) > _SHOWN else ""
        noun = "image" if len(skipped) == 1 else "images"
        report_note(callbacks, f"left out {len(skipped)} {noun} that could not be read{more}")


def read_all(data: ImageData, callbacks: Sequence[Callback]) -> None:
    """Decode all splits, and report how many images there are and which could not be read.

    Args:
        data: the data set.
        callbacks: receive the notes.

    Raises:
        DataError: an image cannot be read and may not be left out, or no image of a class can be read.
    """
    report_progress(callbacks, "reading images", 0, 1)
    train, validation, test = len(data.train), len(data.validation), len(data.test)
    report_progress(callbacks, "reading images", 1, 1)
    report_skipped(data, callbacks)
    same = " (the same)" if data.test is data.validation else ""
    report_note(
        callbacks,
        f"{len(data.classes)} classes; {train:,} images to train on, {validation:,} to choose on, "
        f"{test:,} to report on{same}",
    )
