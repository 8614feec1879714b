"""Prune and evaluate detectors: the jobs behind ``secateur prune`` and ``evaluate`` for labelled boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from secateur.checkpoint import read_metadata
from secateur.detection import DetectorResult, DetectorSettings
from secateur.detection.data import check_data, class_names, read_yolo_labels
from secateur.detection.head_outputs import HeadOutputs, is_torchvision_detector
from secateur.detection.labels import DetectionData, is_labelled_folder, read_labels
from secateur.detection.library import is_ultralytics
from secateur.detection.pruning import (
    as_network,
    check_recipe,
    check_ultralytics,
    note_broken,
    open_tuner,
    prune_ultralytics,
)
from secateur.detection.raw_outputs import copy_without_trainer, with_raw_outputs
from secateur.detection.torchvision_images import side_of
from secateur.detection.torchvision_pruning import DetectorJudge, check_torchvision, prune_torchvision
from secateur.detection.tuning import image_size_of
from secateur.errors import UsageError
from secateur.jobs.network_summary import summarise
from secateur.jobs.networks import Network, captured_network, open_network, sized
from secateur.jobs.records import cut_record
from secateur.jobs.settings import DataChoice, NetworkChoice, PruneJob, is_checkpoint, is_pickled
from secateur.jobs.verifications import combined
from secateur.jobs.workplace import Workplace, open_workplace
from secateur.models import InputSpec
from secateur.recipes import Callback, Measured, Recipe, fingerprint
from secateur.training.context import RunContext, launch
from secateur.training.events import Progress, report_note
from secateur.training.run_folder import DETECTOR, NETWORK, ULTRALYTICS, find_checkpoint
from secateur.training.settings import DeviceSettings, FitSettings

_IDLE_TEACHER = ("weight", "temperature", "divergence", "flip")
"""Settings of a teacher's classes; detectors learn its raw outputs alone."""

_UNUSED = frozenset(
    (
        *(f"data.{name}" for name in DataChoice.model_fields if name != "source"),
        *(f"recipe.distillation.{name}" for name in _IDLE_TEACHER),
    )
)
"""Settings without an effect on detectors."""

_UNUSED_BY_ULTRALYTICS = frozenset(
    f"recipe.{phase}.{name}"
    for phase in ("between", "finetune")
    for name in FitSettings.model_fields
    if name not in ("epochs", "updates")
)
"""Settings without an effect on the trainer of ultralytics."""


def prune_boxes(job: PruneJob, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Prune a detector to a budget, and fine-tune it: one of ultralytics by its own trainer.

    Args:
        job: its settings. The network is a ``.pt`` file of ultralytics, or a detector of ultralytics or
            torchvision: a name with weights, a checkpoint, or a function in a file. The data are a
            ``data.yaml``, a folder with VOC or COCO labels, or for a classifier in a ``.pt`` file a folder of
            images by class.
        callbacks: receive progress and notes.

    Returns:
        The content of ``summary.json``. The network is in ``checkpoints/best.safetensors``, for ultralytics
        also in ``pruned.pt``.

    Raises:
        SecateurError: the message says what is wrong; only the run folder was changed.
    """
    if job.data is None:
        raise UsageError("--data: a detector is pruned with the data.yaml that it was trained with")
    if job.budget is None:
        raise UsageError("--max-drop: not for detectors; give what may remain, such as --macs 0.5")
    if job.resume:
        raise UsageError("--resume: a run on a detector cannot be continued; start it again with --overwrite")
    if job.measured is not None:
        raise UsageError("--measured: not for detectors; leave it out")
    network, labelled = _opened(job.network, job.data.source, job.detector)
    _refuse_unused(job)
    with launch(job.device) as context:
        network.model.to(context.device)
        _check(job, network, labelled)
        unused = _UNUSED | _UNUSED_BY_ULTRALYTICS if labelled is None else _UNUSED
        with open_workplace("prune", job, context, callbacks, unused) as place:
            _prune(job, place, network, labelled)
    return dict(place.run.summary)


def _prune(job: PruneJob, place: Workplace, network: Network, labelled: DetectionData | None) -> None:
    """Prune a detector, and write the networks and the summary."""
    place.begin(network, None)
    if network.weights is not None:
        report_note(place.callbacks, f"weights: {network.weights}")
    if labelled is not None:
        note_broken(labelled.broken, place.callbacks)
    with place.clock("pruning"):
        result = _pruned(job, place, network, labelled)
    place.note_time(result.pruning.latency)
    done = network.after(cut_record(cut) for cut in result.pruning.cuts)
    original = replace(network, file=place.save("original", network))
    pruned = replace(done, model=copy_without_trainer(result.network))
    pruned = replace(pruned, file=place.finish(pruned))
    captured = {"baseline": captured_network(original), "pruned": captured_network(pruned)}
    figures, conditions = place.compare(captured, {})
    for name, stage in (("baseline", "before"), ("pruned", "after")):
        figures[name] |= _metrics(result.metrics[stage])
    file = result.file
    if labelled is None:
        file = file.replace(place.run.path / DETECTOR)
        report_note(place.callbacks, f"for ultralytics: {file}")
    place.run.summarise(
        model=network.name,
        criterion=job.recipe.criterion,
        **figures,
        detection={stage: _metrics(found) for stage, found in result.metrics.items()},
        verification=combined([cut.verification for cut in result.pruning.cuts]),
        removed_branches=[name for cut in result.pruning.cuts for name in cut.plan.without],
        checkpoint=pruned.file,
        file=file,
        latency=conditions,
        **({"ultralytics": dict(result.arguments)} if result.arguments else {}),
    )
    _remember(place, captured["baseline"], result)


def _refuse_unused(job: PruneJob) -> None:
    """Refuse settings without an effect on detectors.

    Raises:
        UsageError: one differs from its default.
    """
    assert job.data is not None
    usual, instead = DataChoice(source=job.data.source), {"batch_size": "set detector.batch"}
    for name in DataChoice.model_fields:
        if getattr(job.data, name) != getattr(usual, name):
            raise UsageError(f"data.{name}: no effect on detectors; {instead.get(name, 'leave it out')}")
    teacher, default = job.recipe.distillation, Recipe().distillation
    for name in _IDLE_TEACHER:
        if getattr(teacher, name) not in (0, getattr(default, name)):
            raise UsageError(f"distillation.{name}: no effect on detectors; set distillation.outputs=1")


def _check(job: PruneJob, network: Network, labelled: DetectionData | None) -> None:
    """Check data and settings for a network, before a run folder is made or replaced.

    Raises:
        UsageError: they are wrong.
    """
    assert job.data is not None
    if labelled is not None:
        check_torchvision(network.model, labelled, _at_size(job.detector, network))
    else:
        check_recipe(job.recipe)
        check_ultralytics(network.model, job.data.source, _at_size(job.detector, network))


def _at_size(settings: DetectorSettings, network: Network) -> DetectorSettings:
    """Set the size of the images to that of a network."""
    return settings.model_copy(update={"image_size": network.input.size[-1]})


def evaluate_boxes(
    choice: NetworkChoice,
    data: DataChoice,
    device: DeviceSettings | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Measure the mAP of a detector on the test images, or on those of validation if there are none.

    Args:
        choice: the network, as for :func:`prune_boxes`.
        data: the images, as for :func:`prune_boxes`.
        device: where to compute.
        callbacks: receive notes.

    Returns:
        ``network``, ``model``, ``split``, and ``map`` and ``map50``; of a classifier ``top1``.

    Raises:
        SecateurError: the message says what is wrong.
    """
    given = {"image_size": choice.size, "batch": data.batch_size}
    settings = DetectorSettings(**{name: value for name, value in given.items() if value is not None})
    with launch(device) as context:
        network, labelled = _opened(choice, data.source, settings)
        network.model.to(context.device)
        if labelled is None:
            with TemporaryDirectory() as folder:
                bare = as_network(network.model)
                tuner = open_tuner(
                    with_raw_outputs(bare), data.source, Path(folder), _at_size(settings, network), callbacks
                )
                split = "test" if tuner.reader(bare).data.get("test") else "val"
                found = tuner.validate(bare, split)
        else:
            note_broken(labelled.broken, callbacks)
            split = "test" if labelled.splits["test"] else "val"
            heads = HeadOutputs(network.model).eval()
            at_size = _at_size(settings, network)
            found = DetectorJudge(network.model, labelled, at_size, callbacks).evaluate(heads, split)
    return {
        "network": choice.source,
        "model": network.name,
        "split": split,
        "image_size": network.input.size[-1],
        **_metrics(found),
    }


@dataclass(frozen=True)
class _Stopping(Callback):
    """Stop at the next step of work if the user asked for it.

    Attributes:
        context: of the run.
    """

    context: RunContext

    def on_progress(self, progress: Progress) -> None:
        """Stop if the user asked for it."""
        self.context.interruption.check()


def _pruned(
    job: PruneJob, place: Workplace, network: Network, labelled: DetectionData | None
) -> DetectorResult:
    """Prune a detector, with the labels that are read already or with ultralytics."""
    assert job.data is not None
    assert job.budget is not None
    settings, detector = _at_size(job.detector, network), network.model
    callbacks = [*place.callbacks, _Stopping(place.context)]
    if labelled is not None:
        file = place.run.checkpoint("best")
        return prune_torchvision(
            detector, labelled, job.budget, file, job.recipe, settings, callbacks, job.seed
        )
    return prune_ultralytics(
        detector,
        job.data.source,
        job.budget,
        place.run.path / ULTRALYTICS,
        job.recipe,
        settings,
        callbacks,
        job.seed,
    )


def _opened(
    choice: NetworkChoice, source: str, settings: DetectorSettings
) -> tuple[Network, DetectionData | None]:
    """Open a detector; for one of torchvision, also the labelled images, which ultralytics reads itself.

    Raises:
        UsageError: it is no detector, or the images cannot be used.
    """
    if is_pickled(choice.source):
        return open_network(choice.model_copy(update={"size": settings.image_size or choice.size})), None
    known = settings.classes
    if known is None and is_checkpoint(choice.source):
        known = read_metadata(find_checkpoint(choice.source)).classes
    labelled = read_labels(source, known) if is_labelled_folder(source) else None
    names = labelled.names if labelled is not None else known or tuple(class_names(check_data(source)))
    network = open_network(_with_classes(choice, len(names)))
    if is_ultralytics(network.model):
        if network.file is None and choice.weights is None:
            raise UsageError(
                f"--weights: {choice.source} comes without weights; give the file of its state_dict, or none "
                "to start from random ones"
            )
        vars(network.model)["names"] = dict(enumerate(names))
        known_side = network.input.size[-1] if network.file is not None else None
        side = settings.image_size or known_side or image_size_of(network.model, settings)
        return replace(network, inputs=sized(network.input, side), classes=names), None
    if not is_torchvision_detector(network.model):
        raise UsageError(
            f"{choice.source} is no detector, and {source} has labelled boxes: give a .pt file of "
            "ultralytics, a detector such as ultralytics:yolov8n.yaml or ssdlite320_mobilenet_v3_large, "
            "or a folder of images by class"
        )
    side = side_of(network.model, settings.image_size or _saved_side(choice.source))
    inputs = InputSpec((3, side, side), (0.0,) * 3, (1.0,) * 3)
    return replace(network, inputs=inputs, classes=names), labelled or read_yolo_labels(source, names)


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


def _metrics(found: Mapping[str, float]) -> dict[str, float]:
    """Name metrics plainly: ``map50``, ``map``, ``top1``."""
    names = {"metrics/mAP50(B)": "map50", "metrics/mAP50-95(B)": "map", "metrics/accuracy_top1": "top1"}
    names |= {name: name for name in names.values()}
    return {plain: found[name] for name, plain in names.items() if name in found}


def _remember(place: Workplace, original: Network, result: DetectorResult) -> None:
    """Write what a report needs: scores, curves, and the network before and after."""
    pruning = result.pruning
    place.run.remember(Measured(fingerprint(original.model), pruning.scores, pruning.curves).to_dict())
    with place.clock("timing layers"):
        found = summarise(
            original.model,
            pruning.model,
            pruning.cuts,
            original.example(),
            original.timed(place.job),
            place.job.latency_seconds,
        )
    place.run.remember(found.model_dump(mode="json"), NETWORK)
