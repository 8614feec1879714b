"""Define what a network of a job is trained and judged on: images in classes, or text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from secateur.batches import LossFunction
from secateur.errors import UsageError
from secateur.inputs import NamedInputs
from secateur.jobs.images import ImageTask, open_images
from secateur.jobs.networks import Network, inputs_of
from secateur.jobs.settings import DataChoice, NetworkChoice
from secateur.jobs.text import TextTask
from secateur.recipes import Callback, Recipe
from secateur.settings import Need
from secateur.training.evaluate import Batches


class Task(Protocol):
    """Data with the loss and the metric that belong to it."""

    @property
    def loss_fn(self) -> LossFunction | None:
        """Return the loss, if it is not cross-entropy."""
        ...

    @property
    def evaluated_on(self) -> str:
        """Return where networks are compared without training."""
        ...

    def open(self, choice: NetworkChoice) -> Network:
        """Open a network and check that it fits the data."""
        ...

    def read(self, callbacks: Sequence[Callback]) -> None:
        """Read all data, and report how much there is."""
        ...

    def needs(self) -> Iterator[Need]:
        """List settings of jobs and recipes that have no effect on this data; refused if they were given."""
        ...

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe that does harm on this data, whether its settings were given or are in a file."""
        ...

    def training_batches(self, *, taught: bool = False) -> Batches:
        """Return the batches to train on, with or without a teacher."""
        ...

    def calibration_batches(self) -> Batches:
        """Return the training examples as they are, without augmentation."""
        ...

    def validation_batches(self) -> Batches | None:
        """Return the batches to choose networks on, if there are any."""
        ...

    def test_batches(self) -> Batches:
        """Return the batches to report on."""
        ...

    def start(self) -> dict[str, Any]:
        """Describe the data for the summary of a run, at its start."""
        ...

    def facts(self) -> dict[str, Any]:
        """Describe the data for the summary of a run, at its end."""
        ...

    def compare(self, before: list[Tensor], after: list[Tensor]) -> dict[str, Any] | None:
        """Compare the answers of two networks, if they are classes."""
        ...


def open_task(choice: DataChoice, network: NetworkChoice, seed: int, *, training: bool = True) -> Task:
    """Open the data of a job: text for a language model, images for other networks.

    Args:
        choice: the data.
        network: what it is for.
        seed: determines order and augmentation.
        training: whether there must be training data.

    Raises:
        DataError: the data is missing, empty or inconsistent.
        UsageError: there is no such network, or it takes other inputs.
    """
    inputs = inputs_of(network)
    if not isinstance(inputs, NamedInputs):
        return ImageTask(open_images(choice, inputs, seed, training=training), choice.source)
    if {"input_ids"} <= inputs.sizes().keys() <= {"input_ids", "attention_mask"}:
        return TextTask.of(choice, network, seed, training=training)
    raise UsageError(
        f"{network.source} takes {', '.join(inputs.sizes())}, and this works with networks of images and "
        "with language models; use the network in Python (sec.build, sec.trace, sec.apply_plan)"
    )
