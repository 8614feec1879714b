"""Prune a detector of ultralytics: the job behind ``secateur prune`` for a ``.pt`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from secateur.detection import DetectorResult, open_detector, prune_detector
from secateur.detection.raw_outputs import bare_copy, with_raw_outputs
from secateur.errors import SecateurError, UsageError
from secateur.jobs.network_summary import summarise
from secateur.jobs.networks import Network
from secateur.jobs.records import cut_record
from secateur.jobs.settings import PruneJob
from secateur.jobs.verifications import of_cuts
from secateur.jobs.workplace import Workplace, at_work
from secateur.models import InputSpec, ModelSpec
from secateur.recipes import Callback, Measured, fingerprint
from secateur.training.context import launch
from secateur.training.events import report_note
from secateur.training.run_folder import DETECTOR, NETWORK, ULTRALYTICS


def prune_pt(job: PruneJob, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Prune a detector to a budget, and fine-tune it by the trainer of ultralytics.

    Args:
        job: its settings; the network is a ``.pt`` file, the data a ``data.yaml``.
        callbacks: receive progress and notes.

    Returns:
        The content of ``summary.json``. The network is in ``pruned.pt`` and, without pickle, in
        ``checkpoints/best.safetensors``.

    Raises:
        SecateurError: the message says what is wrong; only the run folder was changed.
    """
    if job.data is None:
        raise UsageError("--data: a detector is pruned with the data.yaml that it was trained with")
    if job.budget is None:
        raise UsageError("--max-drop: not for detectors; give what may remain, such as --macs 0.5")
    if job.resume:
        raise UsageError("--resume: a run on a detector cannot be continued; start it again with --overwrite")
    detector = open_detector(job.network.source, trusted=job.network.trusted)
    with launch(job.device) as context, at_work("prune", job, context, callbacks) as place:
        original = _network(detector.to(context.device), job)
        place.begin(original, None)
        with place.clock("pruning"):
            result = prune_detector(
                detector,
                job.data.source,
                job.budget,
                place.run.path / ULTRALYTICS,
                job.recipe,
                job.detector,
                place.callbacks,
                job.seed,
            )
        file = result.file.replace(place.run.path / DETECTOR)
        network = _network(result.network, job).after(cut_record(cut) for cut in result.pruning.cuts)
        original = replace(original, file=place.save("original", original))
        network = replace(network, file=place.finish(network))
        figures, conditions = place.compare({"baseline": original, "pruned": network}, {})
        for name, stage in (("baseline", "before"), ("pruned", "after")):
            figures[name] |= _metrics(result.metrics[stage])
        place.run.summarise(
            model=network.name,
            criterion=job.recipe.criterion,
            **figures,
            detection={stage: _metrics(found) for stage, found in result.metrics.items()},
            verification=of_cuts(result.pruning.cuts),
            removed_branches=[name for cut in result.pruning.cuts for name in cut.plan.without],
            checkpoint=network.file,
            file=file,
            latency=conditions,
        )
        _remember(place, original, result)
        report_note(place.callbacks, f"for ultralytics: {file}")
    return dict(place.run.summary)


def _network(detector: nn.Module, job: PruneJob) -> Network:
    """Describe a detector, without what its trainer attached."""
    bare = bare_copy(detector)
    vars(bare).pop("args", None)
    side, names = job.detector.image_size, getattr(detector, "names", None)
    spec = _spec(detector, side)
    return Network(
        model=bare,
        name=spec.name if spec else Path(job.network.source).name,
        spec=spec,
        inputs=InputSpec((_channels(detector), side, side), (0.0,) * 3, (1.0,) * 3),
        classes=tuple(map(str, names.values())) if names else None,
    )


def _spec(detector: nn.Module, side: int) -> ModelSpec | None:
    """Find the description of ultralytics from which a detector was built, if it is one of the library's."""
    description: Any = getattr(detector, "yaml", {})
    file = Path(str(description.get("yaml_file", ""))).name
    try:
        return ModelSpec.parse(f"ultralytics:{file}", classes=int(description["nc"]), image_size=side)
    except (SecateurError, KeyError, TypeError, ValueError):
        return None


def _channels(detector: nn.Module) -> int:
    return int(getattr(detector, "yaml", {}).get("channels", 3))


def _metrics(found: Mapping[str, float]) -> dict[str, float]:
    """Name metrics of ultralytics plainly: ``map50``, ``map``, ``top1``."""
    names = {"metrics/mAP50(B)": "map50", "metrics/mAP50-95(B)": "map", "metrics/accuracy_top1": "top1"}
    return {plain: found[name] for name, plain in names.items() if name in found}


def _remember(place: Workplace, original: Network, result: DetectorResult) -> None:
    """Write what a report needs: scores, curves, and the network before and after."""
    pruning = result.pruning
    place.run.remember(Measured(fingerprint(original.model), pruning.scores, pruning.curves).to_dict())
    inputs = original.example()
    with place.clock("timing layers"):
        found = summarise(
            with_raw_outputs(original.model),
            pruning.model,
            pruning.cuts,
            inputs,
            original.example(place.job.latency_batch),
            place.job.latency_seconds,
        )
    place.run.remember(found.model_dump(mode="json"), NETWORK)
