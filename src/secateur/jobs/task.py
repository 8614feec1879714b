"""Define what a network of a job is trained and judged on: images in classes, labelled boxes, or text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from secateur.batches import LossFunction
from secateur.detection.settings import DetectorSettings
from secateur.errors import UsageError
from secateur.inputs import NamedInputs
from secateur.jobs.detector import open_boxes
from secateur.jobs.images import NOT_A_DETECTOR, ImageTask, open_images
from secateur.jobs.networks import Network, inputs_of
from secateur.jobs.settings import DataChoice, FrontierJob, NetworkChoice, PruneJob, takes_boxes
from secateur.jobs.text import TextTask
from secateur.recipes import Recipe, RecipeContext, Training
from secateur.settings import Need, refuse_idle
from secateur.training.context import RunContext
from secateur.training.evaluate import Batches, Evaluation
from secateur.training.metrics import MetricKind
from secateur.training.settings import DeviceSettings


class Task(Protocol):
    """Data with the loss and the metric that belong to it."""

    @property
    def loss_fn(self) -> LossFunction | None:
        """Return the loss, if it is not cross-entropy."""
        ...

    @property
    def metric(self) -> MetricKind:
        """Return what networks are judged by."""
        ...

    @property
    def evaluated_on(self) -> str:
        """Return where networks are compared without training."""
        ...

    def open(self, choice: NetworkChoice) -> Network:
        """Open a network and check that it fits the data."""
        ...

    def needs(self) -> Iterator[Need]:
        """List settings of a job that have no effect on this data or its networks."""
        ...

    def check(self, recipe: Recipe, device: torch.device) -> None:
        """Check settings and data on a device, before anything is written."""
        ...

    def read(self, folder: Path, context: RunContext) -> Self:
        """Read all data, report how much there is, and return the task with it.

        What a library keeps beside the data goes into a folder, that of the run.
        """
        ...

    def training(self, context: RecipeContext, recipe: Recipe | None = None) -> Training:
        """Collect what networks are trained, calibrated and chosen on, for a recipe if one is run."""
        ...

    def test_batches(self) -> Batches | None:
        """Return the batches to report on; ``None`` where a library reads them itself."""
        ...

    def evaluate(
        self,
        model: nn.Module,
        context: RunContext,
        *,
        choosing: bool = False,
        answers: list[Tensor] | None = None,
    ) -> Evaluation:
        """Evaluate a network on the data to report on, or on the data for choosing one.

        ``answers`` receives the classes that it answers, if it answers classes.
        """
        ...

    def report(self, found: Evaluation) -> dict[str, Any]:
        """Describe an evaluation on the data to report on."""
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


def open_task(
    choice: DataChoice,
    network: NetworkChoice,
    seed: int,
    *,
    training: bool = True,
    detector: DetectorSettings | None = None,
) -> Task:
    """Open the data of a job: text for a language model, images for other networks.

    Args:
        choice: the data.
        network: what it is for.
        seed: determines order and augmentation.
        training: whether there must be training data.
        detector: how a detector reads images.

    Raises:
        DataError: the data is missing, empty or inconsistent.
        UsageError: there is no such network, or it takes other inputs.
    """
    if takes_boxes(network, choice):
        return open_boxes(choice, network, detector or DetectorSettings(), seed, training=training)
    inputs = inputs_of(network)
    if not isinstance(inputs, NamedInputs):
        return ImageTask(open_images(choice, inputs, seed, training=training), choice.source)
    if {"input_ids"} <= inputs.sizes().keys() <= {"input_ids", "attention_mask"}:
        return TextTask.of(choice, network, seed, training=training)
    raise UsageError(
        f"{network.source} takes {', '.join(inputs.sizes())}, and this works with networks of images and "
        "with language models; use the network in Python (sec.build, sec.trace, sec.apply_plan)"
    )


def check_task(task: Task, job: PruneJob | FrontierJob, device: torch.device) -> None:
    """Refuse settings of a job that have no effect on its data, or are wrong for them.

    Args:
        task: the data.
        job: the settings.
        device: where they are checked.

    Raises:
        UsageError: there is one.
    """
    refuse_idle(task.needs(), job.given)
    task.check(job.recipe, device)


def idle_paths(task: Task | None) -> set[str]:
    """Return the dotted paths of the settings of a job that have no effect, and are not recorded.

    Args:
        task: the data; ``None`` if there is none.
    """
    paths = {need.path for need in ([NOT_A_DETECTOR] if task is None else task.needs()) if need.idle}
    return {f"recipe.{path}" if path.partition(".")[0] in Recipe.model_fields else path for path in paths}


def computing(job: PruneJob | FrontierJob) -> DeviceSettings:
    """Return where and how a job computes; on detectors in float32, unless the user says otherwise.

    Args:
        job: the settings.
    """
    if job.device.precision == "auto" and takes_boxes(job.network, job.data):
        return job.device.model_copy(update={"precision": "float32"})
    return job.device
