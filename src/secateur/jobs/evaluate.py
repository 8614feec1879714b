"""Evaluate a network on images or text: the job behind ``secateur evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.jobs.detector import evaluate_boxes
from secateur.jobs.images import ImageTask, report_skipped
from secateur.jobs.settings import DataChoice, NetworkChoice, is_pickled
from secateur.jobs.task import open_task
from secateur.recipes import Callback
from secateur.training.context import launch
from secateur.training.evaluate import evaluate as judge
from secateur.training.interrupt import interruptible
from secateur.training.losses import evaluation_loss
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
        perplexity. For a detector what :func:`secateur.jobs.detector.evaluate_boxes` returns.

    Raises:
        SecateurError: the message says what is wrong.
    """
    if is_pickled(choice.source) or data_choice.has_boxes:
        return evaluate_boxes(choice, data_choice, device, callbacks)
    with launch(device) as context, interruptible(context.ranks) as interruption:
        task = open_task(data_choice, choice, seed=0, training=False)
        network = task.open(choice)
        network.model.to(context.device)
        found = judge(
            network.model,
            task.test_batches(),
            loss_fn=evaluation_loss(task.loss_fn),
            context=replace(
                context, callbacks=callbacks if context.ranks.is_main else (), interruption=interruption
            ),
        )
    if isinstance(task, ImageTask):
        report_skipped(task.data, callbacks)
    return {"network": choice.source, "model": network.name, **found.to_dict(), **task.facts()}
