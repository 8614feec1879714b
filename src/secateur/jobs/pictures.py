"""Pictures for a job, and what a user should know of them."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.data import DataSettings, ImageData, open_data
from secateur.jobs.settings import DataChoice
from secateur.models import InputSpec
from secateur.recipes import Callback
from secateur.training.events import report_note, report_progress

_SHOWN = 10


def open_pictures(choice: DataChoice, spec: InputSpec, seed: int, *, training: bool = True) -> ImageData:
    """The data set that a user asks for; nothing is decoded yet.

    Args:
        choice: which, and how.
        spec: what the network expects.
        seed: decides order and augmentation.
        training: whether there must be something to train on.

    Raises:
        DataError: it is missing, empty or inconsistent.
    """
    settings = DataSettings(batch_size=choice.batch_size, seed=seed, mixup=choice.mixup, strict=choice.strict)
    return open_data(choice.source, spec, settings, training=training)


def tell_skipped(data: ImageData, callbacks: Sequence[Callback]) -> None:
    """Names the pictures that could not be read.

    Args:
        data: with the splits that matter read.
        callbacks: receive a note for each of the first few, and one with the count.
    """
    skipped = data.skipped
    for line in skipped[:_SHOWN]:
        report_note(callbacks, f"left out {line}")
    if skipped:
        more = f", of which the first {_SHOWN} are named above" if len(skipped) > _SHOWN else ""
        noun = "picture" if len(skipped) == 1 else "pictures"
        report_note(callbacks, f"left out {len(skipped)} {noun} that could not be read{more}")


def read_all(data: ImageData, callbacks: Sequence[Callback]) -> None:
    """Decodes all splits, and says how many pictures there are and what could not be read.

    Args:
        data: the data set.
        callbacks: receive the notes.

    Raises:
        DataError: a picture cannot be read and none may be left out, or a class has none left.
    """
    report_progress(callbacks, "reading pictures", 0, 1)
    train, validation, test = len(data.train), len(data.validation), len(data.test)
    report_progress(callbacks, "reading pictures", 1, 1)
    tell_skipped(data, callbacks)
    same = " (the same)" if data.test is data.validation else ""
    report_note(
        callbacks,
        f"{len(data.classes)} classes; {train:,} pictures to train on, {validation:,} to choose on, "
        f"{test:,} to report on{same}",
    )
