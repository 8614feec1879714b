"""Prune a detector: score, cut, reconstruct, fine-tune, validate; of ultralytics by its own trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from secateur.batches import LossFunction
from secateur.budget import Budget
from secateur.checkpoint import save
from secateur.detection.data import read_any_labels
from secateur.detection.head_outputs import HeadOutputs, is_torchvision_detector
from secateur.detection.labels import DetectionData
from secateur.detection.raw_outputs import with_raw_outputs, without_raw_outputs
from secateur.detection.results import DetectorResult, in_words
from secateur.detection.settings import DetectorSettings
from secateur.detection.torchvision_pruning import DetectorJudge, check_torchvision
from secateur.detection.tuning import Tuned
from secateur.detection.ultralytics_tools import (
    as_network,
    check_recipe,
    check_ultralytics,
    note_broken,
    prepare,
    save_raw,
)
from secateur.graph.cutting.tensors import copy_with
from secateur.recipes import Callback, Recipe, Training, prune
from secateur.training.events import report_note
from secateur.training.random_state import seeded
from secateur.training.resume import Journal


class DetectorTools(Protocol):
    """Data of a detector, and how networks are trained and measured on them."""

    @property
    def loss(self) -> LossFunction | None:
        """Return the loss, if the network does not return it."""
        ...

    @property
    def images(self) -> Mapping[str, int]:
        """Return the number of images by split."""
        ...

    @property
    def skipped(self) -> Sequence[str]:
        """List images and labels that are left out."""
        ...

    @property
    def has_test(self) -> bool:
        """Return whether there are test images."""
        ...

    def evaluate(self, model: nn.Module, split: str = "val") -> Mapping[str, float]:
        """Measure a network that returns what its heads compute, on the images of a split."""
        ...

    def training(self, recipe: Recipe, journal: Journal | None = None) -> Training:
        """Collect batches and functions for a recipe; a journal keeps what no other part of it does."""
        ...


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
    recipe, settings, out = recipe or Recipe(), settings or DetectorSettings(), Path(out)
    if isinstance(detector, nn.Module) and is_torchvision_detector(detector):
        labelled = read_any_labels(data, settings.classes)
        check_torchvision(detector, labelled, settings)
        note_broken(labelled.broken, callbacks)
        heads = HeadOutputs(copy_with(detector, {})).eval()
        judge = DetectorJudge(detector, labelled, settings, callbacks)
        report_note(callbacks, judge.describe())
        with seeded(seed):
            return _pruned(heads, judge, labelled, budget, out, recipe, callbacks)
    check_recipe(recipe)
    check_ultralytics(detector, data, settings)
    raw = with_raw_outputs(as_network(detector))
    with seeded(seed):
        tools = prepare(raw, data, out, settings, callbacks, seed)
        return _pruned(raw, tools, None, budget, out, recipe, callbacks)


def _pruned(
    model: nn.Module,
    tools: DetectorTools,
    labelled: DetectionData | None,
    budget: Budget,
    out: Path,
    recipe: Recipe,
    callbacks: Sequence[Callback],
) -> DetectorResult:
    """Prune a network that returns what its heads compute, in place, and write its file."""
    before, training = tools.evaluate(model), tools.training(recipe)
    report_note(callbacks, f"before: {in_words(before)}")
    example = training.check_inputs
    assert example is not None
    result = prune(
        model, example, budget, batches=training, loss_fn=tools.loss, recipe=recipe, callbacks=callbacks
    )
    small, tuned = result.model.eval(), next(reversed(result.fits), None)
    if isinstance(tuned, Tuned):
        cut, after = tuned.before, tuned.metrics
    else:
        after = tools.evaluate(small)
        cut = tuned.start.figures if tuned is not None and tuned.start is not None else after
    report_note(callbacks, f"after: {in_words(after)}")
    arguments = tuned.arguments if isinstance(tuned, Tuned) else {}
    if isinstance(small, HeadOutputs):
        network, file = small.detector().eval(), out / "pruned.safetensors"
        out.mkdir(parents=True, exist_ok=True)
        save(file, network, classes=labelled.names if labelled else None)
    else:
        network, file = without_raw_outputs(small).eval(), save_raw(out / "pruned.pt", small)
    return DetectorResult(network, result, {"before": before, "cut": cut, "after": after}, file, arguments)
