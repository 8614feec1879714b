"""Read data for a detector of ultralytics, and train and measure it with that library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from secateur.detection.data import (
    DetectorBatches,
    ImageFaults,
    calibration_batches,
    check_classes,
    check_data,
    check_image_folder,
    image_faults,
    names_of,
    with_absolute_path,
)
from secateur.detection.files import save_detector
from secateur.detection.labels import convert_labels, is_labelled_folder
from secateur.detection.library import ultralytics_in_use
from secateur.detection.raw_outputs import (
    DetectorLoss,
    bare_copy,
    with_raw_outputs,
    without_raw_outputs,
)
from secateur.detection.results import evaluation_of, kind_for
from secateur.detection.settings import DetectorSettings
from secateur.detection.tuning import DetectorTuner, Tuned
from secateur.errors import UsageError
from secateur.graph.cutting.tensors import copy_with
from secateur.integrations.libraries import library
from secateur.recipes import Callback, LatencyOptions, Recipe, Training
from secateur.settings import Need, flatten, refuse_idle
from secateur.training.distillation import Teacher
from secateur.training.events import TrainingCallback, report_note
from secateur.training.random_state import seeded
from secateur.training.resume import Entry, Journal, prefixed
from secateur.training.settings import FitSettings


@dataclass(frozen=True)
class UltralyticsTools:
    """Train and measure a detector of ultralytics and smaller versions of it; see :func:`prepare`.

    Attributes:
        raw: the detector, which its loss reads arguments from.
        tuner: trains and validates.
        batches: training images for scores, curves and reconstruction; ``None`` if nothing is trained.
        faults: of the images, by split.
    """

    raw: nn.Module
    tuner: DetectorTuner
    batches: DetectorBatches | None = None
    faults: Mapping[str, ImageFaults] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the metric by which networks are compared."""
        return kind_for(self.raw).name

    @property
    def loss(self) -> DetectorLoss:
        """Return the loss of raw outputs."""
        return DetectorLoss(self.raw)

    @property
    def images(self) -> dict[str, int]:
        """Return the number of images by split."""
        return {split: found.images for split, found in self.faults.items()}

    @property
    def skipped(self) -> Sequence[str]:
        """List the images that ultralytics leaves out."""
        return [file for found in self.faults.values() for file in found.left_out]

    @property
    def has_test(self) -> bool:
        """Return whether there are test images."""
        return bool(self.tuner.reader(without_raw_outputs(self.raw)).data.get("test"))

    def evaluate(self, raw: nn.Module, split: str = "val") -> dict[str, float]:
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
        return evaluation_of(self.evaluate(raw)).metric

    def training(self, recipe: Recipe, journal: Journal | None = None) -> Training:
        """Collect batches and functions for :func:`secateur.prune`.

        Args:
            recipe: says whether the outputs of the unpruned network are learnt.
            journal: keeps the network before a training that may be killed.
        """
        assert self.batches is not None
        images, _ = next(iter(self.batches))
        weight = recipe.distillation.outputs
        teacher = Teacher(copy_with(self.raw, {}), weight=0.0, outputs_weight=weight) if weight else None
        return Training(
            batches=self.batches,
            metric=self,
            train=partial(self.train, len(self.batches.dataset), teacher, journal or Journal()),
            check_inputs=images[:2],
            latency=LatencyOptions(inputs=images[:1]),
        )

    def train(
        self, images: int, teacher: Teacher | None, journal: Journal, raw: nn.Module, phase: FitSettings
    ) -> Tuned:
        """Train a pruned detector in place, for the epochs or updates of a phase of a recipe.

        If the journal holds the network before a training that was killed, this training begins again.

        Args:
            images: number of training images.
            teacher: a network whose raw outputs are learnt.
            journal: keeps the network before the training.
            raw: returns raw outputs.
            phase: says how long.
        """
        trained = without_raw_outputs(raw)
        begun = journal.recall(_PART)
        if begun is not None:
            trained.load_state_dict(begun.tensors)
        if journal:
            journal.record(_PART, Entry({}, prefixed("", trained.state_dict())))
        before = self.tuner.validate(trained)
        per_epoch = math.ceil(images / self.tuner.settings.batch)
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
    *,
    training: bool = True,
) -> UltralyticsTools:
    """Check the data for a detector of ultralytics; read them for a training, and report what cannot be used.

    Args:
        raw: returns raw outputs; it receives the arguments of ultralytics, which its loss reads.
        data: as for :func:`prune_detector`.
        out: folder for the records of ultralytics; created if missing.
        settings: images and training.
        callbacks: receive reports.
        seed: of training.
        training: whether networks are pruned or trained; without, they are only measured.

    Raises:
        UsageError: the data are wrong, are of another task, or have other classes than the network.
    """
    out.mkdir(parents=True, exist_ok=True)
    network = without_raw_outputs(raw)
    with ultralytics_in_use():
        tuner = DetectorTuner(_data_for(network, data, out, callbacks), out, settings, callbacks, seed, data)
        if not training:
            return UltralyticsTools(raw, tuner)
        reader = tuner.reader(network)
        faults = {split: image_faults(reader, split, data) for split in ("train", "val")}
        for split, found in faults.items():
            _note_faults(split, found, callbacks)
        batches = calibration_batches(reader, settings.calibration_images, data)
    trained: Any = raw
    trained.args, trained.nc = reader.args, reader.data["nc"]
    return UltralyticsTools(raw, tuner, batches, faults)


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
                yield Need(f"{phase}.{name}", True, "on detectors that ultralytics trains", remedy)


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe with settings of training that the trainer of ultralytics does not have.

    Args:
        recipe: how to prune and train.

    Raises:
        UsageError: such a setting differs from the default.
    """
    usual = dict(flatten(Recipe().model_dump()))
    changed = [name for name, value in flatten(recipe.model_dump()) if usual.get(name) != value]
    refuse_idle(idle_in_ultralytics(), changed)


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
