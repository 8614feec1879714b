"""Train and judge networks on images in classes; report how many there are and which cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateur.batches import LossFunction
from secateur.data import DataSettings, ImageData, Loader, open_data
from secateur.errors import DataError, UsageError
from secateur.jobs.answers import compare_answers
from secateur.jobs.networks import Network, check_outputs, open_network
from secateur.jobs.settings import DataChoice, NetworkChoice
from secateur.models import InputSpec
from secateur.recipes import Recipe, RecipeContext, Training
from secateur.settings import Need
from secateur.training.context import RunContext
from secateur.training.evaluate import Evaluation, evaluate
from secateur.training.events import TrainingCallback, report_note, report_progress
from secateur.training.metrics import TOP_1, MetricKind

_SHOWN, _BATCH = 10, 32


@dataclass(frozen=True)
class ImageTask:
    """Images in classes, cross-entropy, and accuracy.

    Attributes:
        data: the images.
        source: the user's word for them.
    """

    data: ImageData
    source: str
    loss_fn: LossFunction | None = None
    metric: MetricKind = TOP_1

    @property
    def evaluated_on(self) -> str:
        """Return where networks are compared without training."""
        return "validation" if len(self.data.validation) else "test"

    def open(self, choice: NetworkChoice) -> Network:
        """Open a network, and check that it distinguishes these classes."""
        network = open_network(choice, self.data.classes)
        check_outputs(network, self.data.classes)
        return network

    def needs(self) -> Iterator[Need]:
        """List settings without an effect."""
        yield NOT_A_DETECTOR
        yield Need("data.text", True, "on images")

    def read(self, folder: Path, context: RunContext) -> ImageTask:
        """Decode all images, and report how many there are."""
        read_all(self.data, context.callbacks)
        return self

    def check(self, recipe: Recipe, device: torch.device) -> None:
        """Refuse flipped images where a mirror image may be of another class.

        Raises:
            UsageError: the teacher is to see them.
        """
        if recipe.distillation.weight and recipe.distillation.flip and not self.data.augmentation.flip:
            raise UsageError(
                f"distillation.flip: images of '{self.source}' are not flipped in training, since mirror "
                "images may be of another class; leave distillation.flip out"
            )

    def training(self, context: RecipeContext, recipe: Recipe | None = None) -> Training:
        """Collect augmented training images, the same without augmentation, and the validation images."""
        taught = recipe is not None and recipe.distillation.weight > 0
        validation, calibration = self.data.validation_batches(), self.data.training_batches(augment=False)
        inputs, _ = next(iter(validation or calibration))
        return Training(
            batches=self.data.training_batches(taught=taught),
            calibration=calibration,
            validation=validation,
            check_inputs=inputs,
        )

    def evaluate(
        self,
        model: nn.Module,
        context: RunContext,
        *,
        choosing: bool = False,
        answers: list[Tensor] | None = None,
    ) -> Evaluation:
        """Measure accuracy and loss."""
        batches = to_choose_on(self.data.validation_batches()) if choosing else self.test_batches()
        work = "validating" if choosing else "evaluating"
        return evaluate(model, batches, context=context, task=work, answers=answers)

    def report(self, found: Evaluation) -> dict[str, Any]:
        """Describe an evaluation."""
        return {**found.to_dict(), **self.facts()}

    def test_batches(self) -> Loader:
        """Return the test images."""
        return self.data.test_batches()

    def start(self) -> dict[str, Any]:
        """Describe the images: their number by split."""
        data = self.data
        images = {"train": len(data.train), "val": len(data.validation), "test": len(data.test)}
        return {"images": images, "tested_on": "validation" if data.test is data.validation else "test"}

    def facts(self) -> dict[str, Any]:
        """Describe the images: their classes, and those that could not be read."""
        return {"classes": self.data.classes, "skipped": self.data.skipped}

    def compare(self, before: list[Tensor], after: list[Tensor]) -> dict[str, Any] | None:
        """Compare the answers of two networks on the test images."""
        return compare_answers(self.data.test, self.data.classes, torch.cat(before), torch.cat(after))


B = TypeVar("B")


def to_choose_on(batches: B | None) -> B:
    """Return validation batches.

    Args:
        batches: ``None`` if there are none.

    Raises:
        UsageError: there are none.
    """
    if batches is None:
        raise UsageError("a search needs validation images; leave data.held_out=0 out, or add val/")
    return batches


NOT_A_DETECTOR = Need("detector", True, "on networks that are no detectors")
"""Settings of detectors, on other networks."""


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
    if Path(choice.source).is_file():
        raise DataError(f"{choice.source} is a file, and the network takes images; give a folder of images")
    settings = DataSettings(
        batch_size=choice.batch_size or _BATCH,
        seed=seed,
        held_out=choice.held_out,
        mixup=choice.mixup,
        strict=choice.strict,
    )
    return open_data(choice.source, spec, settings, training=training)


def report_skipped(data: ImageData, callbacks: Sequence[TrainingCallback]) -> None:
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


def read_all(data: ImageData, callbacks: Sequence[TrainingCallback]) -> None:
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
