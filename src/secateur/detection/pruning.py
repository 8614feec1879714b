"""Prune a detector: score, cut, reconstruct, fine-tune, validate; of ultralytics by its own trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from secateur.budget import Budget
from secateur.checkpoint import save
from secateur.detection.data import (
    DetectorBatches,
    ImageFaults,
    calibration_batches,
    check_classes,
    check_data,
    check_image_folder,
    image_faults,
    names_of,
    read_any_labels,
    with_absolute_path,
)
from secateur.detection.files import save_detector
from secateur.detection.head_outputs import is_torchvision_detector
from secateur.detection.labels import convert_labels, is_labelled_folder
from secateur.detection.library import ultralytics_in_use
from secateur.detection.raw_outputs import (
    DetectorLoss,
    bare_copy,
    with_raw_outputs,
    without_raw_outputs,
)
from secateur.detection.results import DetectorResult, evaluation_of, in_words, kind_for
from secateur.detection.settings import DetectorSettings
from secateur.detection.torchvision_pruning import check_torchvision, prune_torchvision
from secateur.detection.tuning import DetectorTuner, Tuned
from secateur.errors import UsageError
from secateur.graph.cutting.tensors import copy_with
from secateur.integrations.libraries import library
from secateur.recipes import Callback, LatencyOptions, Recipe, Training, prune
from secateur.settings import Need, flatten, refuse_idle, with_parents
from secateur.training.distillation import Teacher
from secateur.training.events import TrainingCallback, report_note
from secateur.training.random_state import seeded
from secateur.training.resume import Entry, Journal, prefixed
from secateur.training.settings import FitSettings


def prune_detector(
    detector: Any,
    data: str | Path,
    budget: Budget,
    out: str | Path,
    recipe: Recipe | None = None,
    settings: DetectorSettings | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
) -> DetectorResult:
    """Prune a detector, and fine-tune it: one of ultralytics by its own trainer.

    The raw outputs of the heads are what is scored, verified and reconstructed. The reconstructed network is
    candidate zero of fine-tuning: the result is never below it on the validation images.

    Args:
        detector: ``YOLO("yolov8n.pt")``, or its network, or a detector of torchvision; not changed.
        data: the ``data.yaml`` that it was trained with, or another with the same classes; or a folder with
            VOC or COCO labels, as for :func:`secateur.detection.labels.read_labels`.
        budget: what may remain.
        out: folder for ``pruned.pt`` and the records of ultralytics; created if missing.
        recipe: how to prune and train. The trainer of ultralytics trains for ``finetune.epochs`` or
            ``updates`` (and ``between.epochs`` between cuts); its other settings are ``settings.options``.
        settings: images and training.
        callbacks: receive reports.
        seed: of all random numbers.

    Returns:
        The network and its figures.

    Raises:
        UsageError: data or settings are wrong, or the network is of another task or has other classes.
        BudgetError: the budget cannot be met.
        VerificationError: the cut is wrong or could not be checked.
    """
    recipe, settings = recipe or Recipe(), settings or DetectorSettings()
    out = Path(out)
    if isinstance(detector, nn.Module) and is_torchvision_detector(detector):
        labelled = read_any_labels(data, settings.classes)
        check_torchvision(detector, labelled, settings)
        note_broken(labelled.broken, callbacks)
        out.mkdir(parents=True, exist_ok=True)
        file = out / "pruned.safetensors"
        done = prune_torchvision(detector, labelled, budget, file, recipe, settings, callbacks, seed)
        save(file, done.network, classes=labelled.names)
        return done
    check_recipe(recipe)
    check_ultralytics(detector, data, settings)
    return prune_ultralytics(detector, data, budget, out, recipe, settings, callbacks, seed)


@dataclass(frozen=True)
class Prepared:
    """A detector of ultralytics that returns raw outputs, with its data and tools; see :func:`prepare`.

    Attributes:
        raw: the detector, which its loss reads arguments from.
        tuner: trains and validates.
        batches: training images for scores, curves and reconstruction.
        faults: of the images, by split.
    """

    raw: nn.Module
    tuner: DetectorTuner
    batches: DetectorBatches
    faults: Mapping[str, ImageFaults]

    @property
    def name(self) -> str:
        """Return the name of the metric by which networks are compared."""
        return kind_for(self.raw).name

    @property
    def loss(self) -> DetectorLoss:
        """Return the loss of raw outputs."""
        return DetectorLoss(self.raw)

    def validate(self, raw: nn.Module, split: str = "val") -> dict[str, float]:
        """Measure a detector that returns raw outputs.

        Args:
            raw: this one or a smaller version; not changed.
            split: the images.

        Returns:
            The metrics by the names of ultralytics.
        """
        return self.tuner.validate(without_raw_outputs(raw), split)

    def __call__(self, raw: nn.Module) -> float:
        """Return the metric of a network on the validation images."""
        return evaluation_of(self.validate(raw)).metric

    def training(self, recipe: Recipe, journal: Journal | None = None) -> Training:
        """Collect batches and functions for :func:`secateur.prune`.

        Args:
            recipe: says whether the outputs of the unpruned network are learnt.
            journal: keeps the network before a training that may be killed.
        """
        images, _ = next(iter(self.batches))
        weight = recipe.distillation.outputs
        teacher = Teacher(copy_with(self.raw, {}), weight=0.0, outputs_weight=weight) if weight else None
        return Training(
            batches=self.batches,
            metric=self,
            train=partial(self.train, teacher=teacher, journal=journal or Journal()),
            check_inputs=images[:2],
            latency=LatencyOptions(inputs=images[:1]),
        )

    def train(self, raw: nn.Module, phase: FitSettings, teacher: Teacher | None, journal: Journal) -> Tuned:
        """Train a pruned detector in place, for the epochs or updates of a phase of a recipe.

        If the journal holds the network before a training that was killed, this training begins again.

        Args:
            raw: returns raw outputs.
            phase: says how long.
            teacher: a network whose raw outputs are learnt.
            journal: keeps the network before the training.
        """
        trained = without_raw_outputs(raw)
        begun = journal.recall(_PART)
        if begun is not None:
            trained.load_state_dict(begun.tensors)
        if journal:
            journal.record(_PART, Entry({}, prefixed("", trained.state_dict())))
        before = self.tuner.validate(trained)
        batch = self.tuner.settings.batch
        per_epoch = math.ceil(len(self.batches.dataset) / batch)
        epochs = math.ceil(phase.steps(per_epoch) / per_epoch) if phase.trains else 0
        tuned = self.tuner.train(trained, epochs, before, teacher)
        journal.drop(_PART)
        raw.load_state_dict(trained.state_dict())
        return tuned


_PART = "ultralytics"
"""The part of the journal that keeps the network before a training."""


def prepare(
    raw: nn.Module,
    data: str | Path,
    out: Path,
    settings: DetectorSettings,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
) -> Prepared:
    """Read the data for a detector of ultralytics, and report what of them cannot be used.

    Args:
        raw: returns raw outputs; it receives the arguments of ultralytics, which its loss reads.
        data: as for :func:`prune_detector`.
        out: folder for the records of ultralytics; created if missing.
        settings: images and training.
        callbacks: receive reports.
        seed: of training.

    Raises:
        UsageError: the data are wrong, are of another task, or have other classes than the network.
    """
    tuner = open_tuner(raw, data, out, settings, callbacks, seed)
    with ultralytics_in_use():
        reader = tuner.reader(without_raw_outputs(raw))
        faults = {split: image_faults(reader, split, data) for split in ("train", "val")}
        for split, found in faults.items():
            _note_faults(split, found, callbacks)
        batches = calibration_batches(reader, settings.calibration_images, data)
    tools: Any = raw
    tools.args, tools.nc = reader.args, reader.data["nc"]
    return Prepared(raw, tuner, batches, faults)


def open_tuner(
    raw: nn.Module,
    data: str | Path,
    out: Path,
    settings: DetectorSettings,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
) -> DetectorTuner:
    """Check the data for a detector of ultralytics, and return what trains and validates with them.

    Arguments and errors are those of :func:`prepare`; nothing is read for a training.
    """
    out.mkdir(parents=True, exist_ok=True)
    with ultralytics_in_use():
        file = _data_for(without_raw_outputs(raw), data, out, callbacks)
    return DetectorTuner(file, out, settings, callbacks, seed, data)


def check_ultralytics(detector: Any, data: str | Path, settings: DetectorSettings) -> None:
    """Check the data and settings for a detector of ultralytics, before anything is written.

    Images and labels are read as ultralytics reads them; it keeps what it finds in a file beside the labels.

    Args:
        detector: as for :func:`prune_detector`; not changed.
        data: as for :func:`prune_detector`.
        settings: images and training.

    Raises:
        UsageError: data or settings are wrong, or the network is of another task or has other classes.
    """
    with TemporaryDirectory() as folder, ultralytics_in_use(), seeded(0):
        first = min(settings.batch, settings.calibration_images)
        few = settings.model_copy(update={"calibration_images": first})
        prepare(with_raw_outputs(as_network(detector)), data, Path(folder), few)


def prune_ultralytics(
    detector: Any,
    data: str | Path,
    budget: Budget,
    out: Path,
    recipe: Recipe,
    settings: DetectorSettings,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
) -> DetectorResult:
    """Prune a detector of ultralytics, whose data and settings :func:`check_ultralytics` has accepted.

    Arguments, results and errors are those of :func:`prune_detector`.
    """
    raw = with_raw_outputs(as_network(detector))
    with ultralytics_in_use(), seeded(seed):
        prepared = prepare(raw, data, out, settings, callbacks, seed)
        before = prepared.validate(raw)
        report_note(callbacks, f"before: {in_words(before)}")
        training = prepared.training(recipe)
        images, _ = next(iter(prepared.batches))
        result = prune(
            raw,
            images[:2],
            budget,
            batches=training,
            loss_fn=prepared.loss,
            recipe=recipe,
            callbacks=callbacks,
        )
        last = next(reversed(result.fits), None)
        tuned = last if isinstance(last, Tuned) else Tuned.begun(prepared.validate(result.model))
        file = save_raw(out / "pruned.pt", result.model)
    report_note(callbacks, f"after: {in_words(tuned.metrics)}")
    metrics = {"before": before, "cut": tuned.before, "after": tuned.metrics}
    return DetectorResult(without_raw_outputs(result.model).eval(), result, metrics, file, tuned.arguments)


def save_raw(path: Path, raw: nn.Module) -> Path:
    """Write a detector that returns raw outputs as a ``.pt`` file of ultralytics.

    Args:
        path: the file.
        raw: as :func:`prepare` has left it, or a smaller version; not changed.

    Returns:
        The file.
    """
    small: Any = without_raw_outputs(raw).eval()
    small.args = vars(small.args)
    return save_detector(path, small)


def _data_for(network: nn.Module, data: str | Path, out: Path, callbacks: Sequence[Callback]) -> Path:
    """Return the data as ultralytics reads them, after they were checked for a network.

    Raises:
        UsageError: they are of another kind than the network needs, or have other classes.
    """
    if getattr(network, "task", None) == "classify":
        return check_image_folder(data, names_of(network))
    if is_labelled_folder(data):
        data = _converted(data, out / "data", names_of(network), callbacks)
    content = check_data(data)
    check_classes(network, content, data)
    _check_points(network, content, data)
    return with_absolute_path(Path(data), content, out)


def as_network(detector: Any) -> nn.Module:
    """Copy the network of a ``YOLO`` object, or a network itself, in evaluation mode, with its task.

    Args:
        detector: either of them; not changed.

    Raises:
        UsageError: it is something else.
    """
    network = detector if isinstance(detector, nn.Module) and hasattr(detector, "stride") else detector.model
    if not isinstance(network, nn.Module):
        raise UsageError(f"a detector is YOLO(...) of a .pt or .yaml file, not {type(network).__name__}")
    copied = bare_copy(network).eval()
    if not hasattr(copied, "task"):
        copied.task = library("ultralytics.nn.tasks").guess_model_task(copied)
    return copied


def _converted(
    folder: str | Path, out: Path, names: Sequence[str] | None, callbacks: Sequence[Callback]
) -> Path:
    """Convert VOC or COCO labels, and report what could not be used."""
    found = convert_labels(folder, out, names)
    counts = ", ".join(f"{count} {split}" for split, count in found.images.items() if count)
    report_note(callbacks, f"labels of {folder} converted: {counts} images ({found.data})")
    note_broken(found.broken, callbacks)
    return found.data


def note_broken(broken: Sequence[str], callbacks: Sequence[TrainingCallback]) -> None:
    """Report the first labels that cannot be used, and their number."""
    if broken:
        more = "; ..." if len(broken) > 5 else ""
        report_note(callbacks, f"{len(broken)} labels left out: {'; '.join(broken[:5])}{more}")


def idle_in_ultralytics() -> Iterator[Need]:
    """List settings of a recipe that the trainer of ultralytics does not have."""
    remedy = "give its own argument in detector.options, such as detector.options.lr0=0.002"
    for phase in ("between", "finetune"):
        for name in FitSettings.model_fields:
            if name not in ("epochs", "updates"):
                yield Need(f"{phase}.{name}", True, "ultralytics trains the detector", remedy)


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe with settings of training that the trainer of ultralytics does not have.

    Args:
        recipe: how to prune and train.

    Raises:
        UsageError: such a setting differs from the default.
    """
    usual = dict(flatten(Recipe().model_dump()))
    changed = [name for name, value in flatten(recipe.model_dump()) if usual.get(name) != value]
    refuse_idle(idle_in_ultralytics(), with_parents(changed))


def _check_points(network: nn.Module, content: Mapping[str, Any], data: str | Path) -> None:
    """Refuse data without the key points that a network finds."""
    if getattr(network, "task", None) != "pose":
        return
    points, found = getattr(network, "kpt_shape", None), content.get("kpt_shape")
    if found is None:
        raise UsageError(
            f"{data} has no kpt_shape, and the network finds key points; add it, or choose other data"
        )
    if points is not None and list(points) != list(found):
        raise UsageError(
            f"the network finds key points of shape {list(points)}, {data} has kpt_shape {list(found)}"
        )


def _note_faults(split: str, found: ImageFaults, callbacks: Sequence[Callback]) -> None:
    """Report images of a split with faults."""
    for files, what in (
        (found.left_out, "left out, broken or with wrong labels"),
        (found.flat, "with a box without width or height, which ultralytics keeps"),
    ):
        if files:
            shown = ", ".join(Path(file).name for file in files[:5]) + (", ..." if len(files) > 5 else "")
            report_note(callbacks, f"{split}: {len(files)} images {what}: {shown}")
    if found.empty:
        report_note(callbacks, f"{split}: {found.empty} images without an object")
