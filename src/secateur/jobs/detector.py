"""Prune and judge detectors on labelled images: those of ultralytics, and those of torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.batches import LossFunction
from secateur.checkpoint import read_metadata
from secateur.detection.data import check_data, class_names, read_any_labels
from secateur.detection.head_outputs import is_torchvision_detector
from secateur.detection.labels import DetectionData, is_labelled_folder
from secateur.detection.library import is_ultralytics
from secateur.detection.pruning import DetectorTools
from secateur.detection.raw_outputs import RawOutputs, without_raw_outputs
from secateur.detection.results import evaluation_of, kind_for
from secateur.detection.settings import DetectorSettings
from secateur.detection.torchvision_images import side_of
from secateur.detection.torchvision_pruning import DetectorJudge, check_torchvision
from secateur.detection.tuning import Tuned, image_size_of
from secateur.detection.ultralytics_tools import (
    as_network,
    check_ultralytics,
    idle_in_ultralytics,
    note_broken,
    prepare,
    save_raw,
)
from secateur.errors import UsageError
from secateur.jobs.networks import Network, captured_network, open_network, sized, whole_network
from secateur.jobs.settings import DataChoice, NetworkChoice, is_checkpoint, is_pickled
from secateur.models import InputSpec
from secateur.recipes import Callback, Recipe, RecipeContext, Training
from secateur.settings import Need
from secateur.training.context import RunContext
from secateur.training.evaluate import Evaluation
from secateur.training.events import Progress, report_note
from secateur.training.interrupt import Interruption
from secateur.training.loop import FitState
from secateur.training.metrics import MetricKind
from secateur.training.run_folder import DETECTOR, ULTRALYTICS, find_checkpoint


@dataclass(frozen=True)
class DetectorTask:
    """Images as the library of a detector reads them, with its losses and metrics.

    Attributes:
        network: the detector, which returns what its heads compute.
        source: the user's word for the images.
        settings: how images are read.
        seed: determines their order.
        trains: whether networks are trained; then they are reported on by the validation images.
        tools: read, train and measure, once the data are read.
    """

    network: Network
    source: str
    settings: DetectorSettings
    seed: int
    trains: bool
    tools: DetectorTools | None = field(default=None, kw_only=True)

    @property
    def loss_fn(self) -> LossFunction | None:
        """Return the loss, if the network does not return it."""
        return self._tools.loss

    @property
    def metric(self) -> MetricKind:
        """Return what networks are judged by."""
        return kind_for(self.network.model)

    @property
    def evaluated_on(self) -> str:
        """Return where networks are compared without training."""
        return "validation"

    def open(self, choice: NetworkChoice) -> Network:
        """Return the network, which was opened with the images."""
        return self.network

    def needs(self) -> Iterator[Need]:
        """List settings that have no effect on a detector."""
        instead = {"batch_size": "set detector.batch"}
        for name in DataChoice.model_fields:
            if name != "source":
                remedy = instead.get(name, "")
                yield Need(f"data.{name}", True, "on detectors", remedy)
        for name in ("weight", "temperature", "divergence", "flip"):
            reason = "on detectors, which learn the raw outputs of the unpruned one"
            yield Need(f"distillation.{name}", True, reason, "set distillation.outputs=1")

    def training(self, context: RecipeContext, recipe: Recipe | None = None) -> Training:
        """Collect batches, the metric on the validation images, and the trainer of ultralytics."""
        return self._tools.training(recipe or Recipe(), context.journal)

    def test_batches(self) -> None:
        """Return nothing: the library of the detector reads the images."""

    def evaluate(
        self,
        model: nn.Module,
        context: RunContext,
        *,
        choosing: bool = False,
        answers: list[Tensor] | None = None,
    ) -> Evaluation:
        """Measure mAP, or of a classifier accuracy."""
        return evaluation_of(self._tools.evaluate(model, "val" if choosing else self._split))

    def report(self, found: Evaluation) -> dict[str, Any]:
        """Describe an evaluation."""
        return {"split": self._split, "image_size": self.settings.image_size, **found.figures}

    def start(self) -> dict[str, Any]:
        """Describe the images: their number by split."""
        return {"images": dict(self._tools.images), "tested_on": "validation"}

    def facts(self) -> dict[str, Any]:
        """Describe the images: their classes, and what is left out of them."""
        return {"classes": self.network.classes, "skipped": list(self._tools.skipped)}

    def compare(self, before: list[Tensor], after: list[Tensor]) -> None:
        """Return nothing: an image has several answers."""

    @property
    def _tools(self) -> DetectorTools:
        assert self.tools is not None  # the data are read first
        return self.tools

    @property
    def _split(self) -> str:
        return "test" if not self.trains and self._tools.has_test else "val"


@dataclass(frozen=True)
class TorchvisionTask(DetectorTask):
    """Labelled boxes, the losses of a detector of torchvision, and mAP.

    Attributes:
        labelled: the images.
    """

    labelled: DetectionData

    def needs(self) -> Iterator[Need]:
        """List settings without an effect."""
        yield from super().needs()
        reason, remedy = "on detectors that ultralytics does not train", "set finetune.epochs and the like"
        yield Need("detector.options", True, reason, remedy)

    def check(self, recipe: Recipe, device: torch.device) -> None:
        """Check the settings and the classes."""
        self.network.model.to(device)
        check_torchvision(whole_network(self.network.model), self.labelled, self.settings)

    def read(self, folder: Path, context: RunContext) -> TorchvisionTask:
        """Report which labels cannot be used."""
        note_broken(self.labelled.broken, context.callbacks)
        detector = whole_network(self.network.model)
        judge = DetectorJudge(detector, self.labelled, self.settings, _stopping(context))
        report_note(context.callbacks, judge.describe())
        return replace(self, tools=judge)


@dataclass(frozen=True)
class UltralyticsTask(DetectorTask):
    """Images as ultralytics reads them, with its loss, its trainer and its metrics."""

    def needs(self) -> Iterator[Need]:
        """List settings without an effect."""
        yield from super().needs()
        yield from idle_in_ultralytics()

    def check(self, recipe: Recipe, device: torch.device) -> None:
        """Check the images as ultralytics reads them."""
        self.network.model.to(device)
        check_ultralytics(without_raw_outputs(self.network.model), self.source, self.settings)

    def read(self, folder: Path, context: RunContext) -> UltralyticsTask:
        """Return the task with its data; ultralytics keeps records of them in the run folder."""
        raw, out = self.network.model, folder / ULTRALYTICS
        tools = prepare(
            raw, self.source, out, self.settings, _stopping(context), self.seed, training=self.trains
        )
        return replace(self, tools=tools)


@dataclass(frozen=True)
class _Stopping(Callback):
    """Stop at the next step of work if the user asked for it.

    Attributes:
        interruption: is asked.
    """

    interruption: Interruption

    def on_progress(self, progress: Progress) -> None:
        """Stop if the user asked for it."""
        self.interruption.check()


def _stopping(context: RunContext) -> Sequence[Any]:
    """Return the callbacks of a context, for work that does not ask its interruption."""
    return [*context.callbacks, _Stopping(context.interruption)]


def open_boxes(
    choice: DataChoice, network: NetworkChoice, settings: DetectorSettings, seed: int, *, training: bool
) -> TorchvisionTask | UltralyticsTask:
    """Open a detector with its labelled images, which ultralytics reads itself.

    Args:
        choice: a ``data.yaml``, a folder with VOC or COCO labels, or for a classifier in a ``.pt`` file a
            folder of images by class.
        network: a ``.pt`` file of ultralytics, or a detector of ultralytics or torchvision: a name with
            weights, a checkpoint, or a function in a file.
        settings: how images are read.
        seed: determines their order.
        training: whether networks are trained.

    Raises:
        UsageError: it is no detector, or the images cannot be used.
    """
    source = choice.source
    if is_pickled(network.source):
        sized_choice = network.model_copy(update={"size": settings.image_size or network.size})
        return _of_ultralytics(open_network(sized_choice), source, settings, seed, training)
    known = settings.classes
    if known is None and is_checkpoint(network.source):
        known = read_metadata(find_checkpoint(network.source)).classes
    labelled = read_any_labels(source, known) if is_labelled_folder(source) else None
    names = labelled.names if labelled is not None else known or tuple(class_names(check_data(source)))
    opened = open_network(_with_classes(network, len(names)))
    if is_ultralytics(opened.model):
        if opened.file is None and network.weights is None:
            raise UsageError(
                f"--weights: {network.source} comes without weights; give the file of its state_dict, or "
                "none to start from random ones"
            )
        vars(opened.model)["names"] = dict(enumerate(names))
        known_side = opened.input.size[-1] if opened.file is not None else None
        side = settings.image_size or known_side or image_size_of(opened.model, settings)
        opened = replace(opened, inputs=sized(opened.input, side), classes=names)
        return _of_ultralytics(opened, source, settings, seed, training)
    if not is_torchvision_detector(opened.model):
        raise UsageError(
            f"{network.source} is no detector, and {source} has labelled boxes: give a .pt file of "
            "ultralytics, a detector such as ultralytics:yolov8n.yaml or ssdlite320_mobilenet_v3_large, "
            "or a folder of images by class"
        )
    side = side_of(opened.model, settings.image_size or _saved_side(network.source))
    inputs = InputSpec((3, side, side), (0.0,) * 3, (1.0,) * 3)
    opened = replace(captured_network(opened), inputs=inputs, classes=names)
    labelled = labelled or read_any_labels(source, names)
    return TorchvisionTask(opened, source, _at_size(settings, side), seed, training, labelled)


def _of_ultralytics(
    network: Network, source: str, settings: DetectorSettings, seed: int, training: bool
) -> UltralyticsTask:
    captured = captured_network(replace(network, model=as_network(network.model)))
    return UltralyticsTask(captured, source, _at_size(settings, network.input.size[-1]), seed, training)


def _at_size(settings: DetectorSettings, side: int) -> DetectorSettings:
    """Set the size of the images to that of a network."""
    return settings.model_copy(update={"image_size": side})


def _saved_side(source: str) -> int | None:
    """Return the side of the images that a checkpoint names; ``None`` if it names none, or is none."""
    if not is_checkpoint(source):
        return None
    known = read_metadata(find_checkpoint(source)).input
    return None if known is None else known.size[-1]


def _with_classes(choice: NetworkChoice, classes: int) -> NetworkChoice:
    """Set how many classes a network that is built by name has; torchvision counts the background too."""
    if is_checkpoint(choice.source):
        return choice
    background = not choice.source.startswith("ultralytics:")
    return choice.model_copy(update={"classes": classes + background})


def write_detector(
    folder: Path, network: Network, tuned: FitState | None, callbacks: Sequence[Callback]
) -> dict[str, Any]:
    """Write a network of ultralytics to the run folder as that library keeps it.

    Args:
        folder: of the run.
        network: the result of the job.
        tuned: its last training, if there was one.
        callbacks: receive a note.

    Returns:
        For the summary: the ``file``, and the arguments of a training with ``ultralytics``; nothing for other
        networks.
    """
    if not isinstance(network.model, RawOutputs):
        return {}
    file = save_raw(folder / DETECTOR, network.model)
    report_note(callbacks, f"for ultralytics: {file}")
    arguments = dict(tuned.arguments) if isinstance(tuned, Tuned) else {}
    return {"file": file, **({"ultralytics": arguments} if arguments else {})}
