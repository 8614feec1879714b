"""Evaluate a network on images or text: the job behind ``secateur evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from secateur.detection.settings import DetectorSettings
from secateur.jobs.images import ImageTask, report_skipped
from secateur.jobs.settings import DataChoice, NetworkChoice, takes_boxes
from secateur.jobs.task import open_task
from secateur.recipes import Callback
from secateur.training.context import launch
from secateur.training.interrupt import interruptible
from secateur.training.settings import DeviceSettings


def evaluate(
    choice: NetworkChoice,
    data_choice: DataChoice,
    device: DeviceSettings | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Compute accuracy or perplexity, and loss, of a network on the test data; of a detector its mAP.

    Args:
        choice: the network.
        data_choice: the images or the text; only ``test`` (or ``val``) is needed. All of a text that is not
            divided counts.
        device: where to compute.
        callbacks: receive progress and notes.

    Returns:
        ``network``, ``model``, ``top1`` or ``perplexity``, ``loss``, ``examples`` (images, or predicted
        tokens), the standard ``error``; ``classes`` and ``skipped`` images, or the ``protocol`` of the
        perplexity. For a detector ``split``, ``image_size``, and ``map`` and ``map50``; of a classifier of
        ultralytics ``top1``.

    Raises:
        SecateurError: the message says what is wrong.
    """
    with (
        launch(device) as context,
        interruptible(context.ranks) as interruption,
        TemporaryDirectory() as folder,
    ):
        shown = callbacks if context.ranks.is_main else ()
        context = replace(context, callbacks=shown, interruption=interruption)
        given = {"image_size": choice.size, "batch": data_choice.batch_size}
        detector = DetectorSettings(**{name: value for name, value in given.items() if value is not None})
        task = open_task(data_choice, choice, seed=0, training=False, detector=detector)
        network = task.open(choice)
        network.model.to(context.device)
        if takes_boxes(choice, data_choice):
            task = task.read(Path(folder), context)
        found = task.report(task.evaluate(network.model, context))
    if isinstance(task, ImageTask):
        report_skipped(task.data, callbacks)
    return {"network": choice.source, "model": network.name, **found}
