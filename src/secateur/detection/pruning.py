"""Prune a detector: score, cut, reconstruct, fine-tune, validate; of ultralytics by its own trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from secateur.budget import Budget
from secateur.checkpoint import save
from secateur.detection.data import (
    ImageFaults,
    calibration_batches,
    check_classes,
    check_data,
    check_image_folder,
    image_faults,
    names_of,
    training_images,
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
from secateur.detection.results import DetectorResult, in_words
from secateur.detection.settings import DetectorSettings
from secateur.detection.torchvision_pruning import check_torchvision, prune_torchvision, read_any_labels
from secateur.detection.tuning import DetectorTuner
from secateur.errors import UsageError
from secateur.integrations.libraries import library
from secateur.recipes import Callback, LatencyOptions, Recipe, Training, prune
from secateur.training.distillation import Teacher
from secateur.training.events import report_note
from secateur.training.random_state import seeded
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
    check_ultralytics(detector, data, recipe, settings)
    return prune_ultralytics(detector, data, budget, out, recipe, settings, callbacks, seed)


def check_ultralytics(detector: Any, data: str | Path, recipe: Recipe, settings: DetectorSettings) -> None:
    """Check the data and settings for a detector of ultralytics, before anything is written.

    Images and labels are read as ultralytics reads them; it keeps what it finds in a file beside the labels.

    Args:
        detector: as for :func:`prune_detector`; not changed.
        data: as for :func:`prune_detector`.
        recipe: how to prune and train.
        settings: images and training.

    Raises:
        UsageError: data or settings are wrong, or the network is of another task or has other classes.
    """
    _check_recipe(recipe)
    network = _copied(detector)
    with TemporaryDirectory() as folder, ultralytics_in_use(), seeded(0):
        file = _data_for(network, data, Path(folder), ())
        tuner = DetectorTuner(file, Path(folder), settings, source=data)
        trainer = tuner.trainer(network, epochs=1, name="data")
        for split in ("train", "val"):
            image_faults(trainer, split, data)
        training_images(trainer, min(settings.batch, settings.calibration_images), data)


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
    network = _copied(detector)
    out.mkdir(parents=True, exist_ok=True)
    file = _data_for(network, data, out, callbacks)
    with ultralytics_in_use(), seeded(seed):
        tuner = DetectorTuner(file, out, settings, callbacks, seed, data)
        trainer = tuner.trainer(network, epochs=1, name="data")
        for split in ("train", "val"):
            _note_faults(split, image_faults(trainer, split, data), callbacks)
        batches = calibration_batches(trainer, settings.calibration_images, data)
        raw = with_raw_outputs(network)
        raw.args, raw.nc = trainer.args, trainer.data["nc"]  # the loss reads them
        metrics: dict[str, Mapping[str, float]] = {"before": tuner.validate(network)}
        arguments: dict[str, Any] = {}
        report_note(callbacks, f"before: {in_words(metrics['before'])}")

        wanted = recipe.distillation.outputs
        teacher = Teacher(with_raw_outputs(network), weight=0.0, outputs_weight=wanted) if wanted else None

        def train(model: nn.Module, phase: FitSettings) -> None:
            metrics["cut"] = metrics["after"] = tuner.validate(without_raw_outputs(model))
            report_note(callbacks, f"cut, not trained: {in_words(metrics['cut'])}")
            if not phase.trains:
                return
            per_epoch = math.ceil(len(batches.dataset) / settings.batch)
            epochs = math.ceil(phase.steps(per_epoch) / per_epoch)
            trained = without_raw_outputs(model)
            tuned = tuner.train(trained, epochs, metrics["cut"], teacher)
            metrics["after"] = tuned.metrics
            arguments.update(tuned.arguments)
            model.load_state_dict(trained.state_dict())

        images, _ = next(iter(batches))
        result = prune(
            raw,
            images[:2],
            budget,
            batches=Training(batches=batches, train=train, latency=LatencyOptions(inputs=images[:1])),
            loss_fn=DetectorLoss(raw),
            recipe=recipe,
            callbacks=callbacks,
        )
        small = without_raw_outputs(result.model).eval()
        if "after" not in metrics:
            metrics["cut"] = metrics["after"] = tuner.validate(small)
        small.args = vars(trainer.args)
        saved = save_detector(out / "pruned.pt", small)
    report_note(callbacks, f"after: {in_words(metrics['after'])}")
    return DetectorResult(small, result, metrics, saved, arguments)


def validate_detector(
    detector: Any,
    data: str | Path,
    out: str | Path,
    settings: DetectorSettings | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[dict[str, float], str]:
    """Measure a detector of ultralytics on the test images, or on those of validation if there are none.

    Args:
        detector: as for :func:`prune_detector`; not changed.
        data: as for :func:`prune_detector`.
        out: folder for the records of ultralytics.
        settings: images.
        callbacks: receive reports.

    Returns:
        The metrics by the names of ultralytics, and the name of the split.

    Raises:
        UsageError: the data are wrong, or have other classes.
    """
    network, out = _copied(detector), Path(out)
    file = _data_for(network, data, out, callbacks)
    with ultralytics_in_use():
        tuner = DetectorTuner(file, out, settings or DetectorSettings(), callbacks, source=data)
        split = "test" if tuner.trainer(network, 1, "data").data.get("test") else "val"
        return tuner.validate(network, split), split


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


def _copied(detector: Any) -> nn.Module:
    """Copy the network of a ``YOLO`` object, or a network itself, in evaluation mode, with its task."""
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


def note_broken(broken: Sequence[str], callbacks: Sequence[Callback]) -> None:
    """Report the first labels that cannot be used, and their number."""
    if broken:
        more = "; ..." if len(broken) > 5 else ""
        report_note(callbacks, f"{len(broken)} labels left out: {'; '.join(broken[:5])}{more}")


def _check_recipe(recipe: Recipe) -> None:
    """Refuse settings of training that the trainer of ultralytics does not have."""
    usual = Recipe()
    for name in ("between", "finetune"):
        phase, default = getattr(recipe, name), getattr(usual, name)
        changed = [key for key in FitSettings.model_fields if getattr(phase, key) != getattr(default, key)]
        for key in changed:
            if key not in ("epochs", "updates"):
                raise UsageError(
                    f"{name}.{key}: no effect on detectors, which ultralytics trains; give its own argument "
                    "in detector.options, such as detector.options.lr0=0.002"
                )


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
