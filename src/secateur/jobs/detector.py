"""Prune and evaluate detectors: the jobs behind ``secateur prune`` and ``evaluate`` for labelled boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from secateur.checkpoint import read_metadata
from secateur.detection import DetectorResult, DetectorSettings, open_detector, prune_detector
from secateur.detection.head_outputs import HeadOutputs, is_torchvision_detector
from secateur.detection.labels import DetectionData
from secateur.detection.pruning import note_broken, validate_detector
from secateur.detection.raw_outputs import bare_copy, with_raw_outputs
from secateur.detection.torchvision_images import side_of
from secateur.detection.torchvision_pruning import DetectorJudge, prune_torchvision, read_any_labels
from secateur.detection.tuning import image_size_of
from secateur.errors import SecateurError, UsageError
from secateur.jobs.network_summary import summarise
from secateur.jobs.networks import Network, open_network
from secateur.jobs.records import cut_record
from secateur.jobs.settings import DataChoice, NetworkChoice, PruneJob, is_checkpoint, is_detector
from secateur.jobs.verifications import combined
from secateur.jobs.workplace import Workplace, open_workplace
from secateur.models import InputSpec, ModelSpec
from secateur.recipes import Callback, Measured, fingerprint
from secateur.training.context import launch
from secateur.training.events import report_note
from secateur.training.run_folder import DETECTOR, NETWORK, ULTRALYTICS, find_checkpoint
from secateur.training.settings import DeviceSettings


def prune_boxes(job: PruneJob, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Prune a detector to a budget, and fine-tune it: one of ultralytics by its own trainer.

    Args:
        job: its settings. The network is a ``.pt`` file of ultralytics, or a detector of torchvision: a name
            with weights, a checkpoint, or a function in a file. The data are a ``data.yaml``, a folder with
            VOC or COCO labels, or for a classifier in a ``.pt`` file a folder of images by class.
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
    if is_detector(job.network.source):
        network, labelled = open_pt(job.network, job.detector.image_size), None
    else:
        network, labelled = _open_torchvision(job.network, job.data.source, job.detector)
    with launch(job.device) as context, open_workplace("prune", job, context, callbacks) as place:
        network.model.to(context.device)
        place.begin(network, None)
        if labelled is not None:
            note_broken(labelled.broken, place.callbacks)
        with place.clock("pruning"):
            result = _pruned(job, place, network.model, labelled)
        done = network.after(cut_record(cut) for cut in result.pruning.cuts)
        original = replace(network, file=place.save("original", network))
        pruned = replace(done, model=_bare(result.network))
        pruned = replace(pruned, file=place.finish(pruned))
        captured = {"baseline": _captured(original), "pruned": _captured(pruned)}
        figures, conditions = place.compare(captured, {})
        for name, stage in (("baseline", "before"), ("pruned", "after")):
            figures[name] |= _metrics(result.metrics[stage])
        file = result.file
        if is_detector(job.network.source):
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
        )
        _remember(place, captured["baseline"], result)
    return dict(place.run.summary)


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
        if is_detector(choice.source):
            network = open_pt(choice, choice.size)
            network.model.to(context.device)
            with TemporaryDirectory() as folder:
                found, split = validate_detector(
                    network.model, data.source, Path(folder), settings, callbacks
                )
        else:
            network, labelled = _open_torchvision(choice, data.source, settings)
            note_broken(labelled.broken, callbacks)
            split = "test" if labelled.splits["test"] else "val"
            network.model.to(context.device)
            heads = HeadOutputs(network.model).eval()
            found = DetectorJudge(network.model, labelled, settings, callbacks).evaluate(heads, split)
    return {"network": choice.source, "model": network.name, "split": split, **_metrics(found)}


def open_pt(choice: NetworkChoice, side: int | None = None) -> Network:
    """Open a ``.pt`` file of ultralytics.

    Args:
        choice: the file, and whether it is trusted.
        side: of the images in pixels.

    Raises:
        UsageError: the file is not trusted, or ultralytics is not installed.
        CheckpointError: the file is no checkpoint of ultralytics.
    """
    detector: Any = open_detector(choice.source, trusted=choice.trusted)
    side = side or image_size_of(detector, DetectorSettings())
    names = getattr(detector, "names", None)
    spec = _spec(detector, side)
    channels = int(getattr(detector, "yaml", {}).get("channels", 3))
    return Network(
        model=_bare(detector),
        name=spec.name if spec else Path(choice.source).name,
        spec=spec,
        inputs=InputSpec((channels, side, side), (0.0,) * channels, (1.0,) * channels),
        classes=tuple(map(str, names.values())) if names else None,
    )


def captured_model(model: nn.Module) -> nn.Module:
    """Return what can be captured of a detector: the raw outputs of its heads.

    Args:
        model: of ultralytics or torchvision.
    """
    return HeadOutputs(model) if is_torchvision_detector(model) else with_raw_outputs(model)


def _captured(network: Network) -> Network:
    return replace(network, model=captured_model(network.model))


def _bare(detector: nn.Module) -> nn.Module:
    """Copy a detector without what its trainer attached."""
    bare = bare_copy(detector)
    vars(bare).pop("args", None)
    return bare


def _pruned(
    job: PruneJob, place: Workplace, detector: nn.Module, labelled: DetectionData | None
) -> DetectorResult:
    """Prune a detector, with the labels that are read already or with ultralytics."""
    assert job.data is not None
    assert job.budget is not None
    settings = job.detector
    if labelled is not None:
        file = place.run.checkpoint("best")
        return prune_torchvision(
            detector, labelled, job.budget, file, job.recipe, settings, place.callbacks, job.seed
        )
    return prune_detector(
        detector,
        job.data.source,
        job.budget,
        place.run.path / ULTRALYTICS,
        job.recipe,
        settings,
        place.callbacks,
        job.seed,
    )


def _open_torchvision(
    choice: NetworkChoice, source: str, settings: DetectorSettings
) -> tuple[Network, DetectionData]:
    """Open a detector of torchvision for the classes of labelled images.

    Raises:
        UsageError: it is no detector, or the images cannot be used.
    """
    names = settings.classes
    if names is None and is_checkpoint(choice.source):
        names = read_metadata(find_checkpoint(choice.source)).classes
    labelled = read_any_labels(source, names)
    if is_checkpoint(choice.source):
        network = open_network(choice)
    else:
        network = open_network(choice.model_copy(update={"classes": len(labelled.names) + 1}))
    if not is_torchvision_detector(network.model):
        raise UsageError(
            f"{choice.source} is no detector, and {source} has labelled boxes: give a .pt file of "
            "ultralytics, a detector of torchvision such as ssdlite320_mobilenet_v3_large, "
            "or a folder of images by class"
        )
    side = side_of(network.model, settings.image_size)
    inputs = InputSpec((3, side, side), (0.0,) * 3, (1.0,) * 3)
    return replace(network, inputs=inputs, classes=labelled.names), labelled


def _spec(detector: nn.Module, side: int) -> ModelSpec | None:
    """Find the description of ultralytics from which a detector was built, if it is one of the library's."""
    description: Any = getattr(detector, "yaml", {})
    file = Path(str(description.get("yaml_file", ""))).name
    try:
        return ModelSpec.parse(f"ultralytics:{file}", classes=int(description["nc"]), image_size=side)
    except (SecateurError, KeyError, TypeError, ValueError):
        return None


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
            original.example(place.job.latency_batch),
            place.job.latency_seconds,
        )
    place.run.remember(found.model_dump(mode="json"), NETWORK)
