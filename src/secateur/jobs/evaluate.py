"""Evaluate a network on images: the job behind ``secateur evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.jobs.detector import evaluate_boxes
from secateur.jobs.images import open_images, report_skipped
from secateur.jobs.networks import check_outputs, input_of, open_network
from secateur.jobs.settings import DataChoice, NetworkChoice, is_detector
from secateur.recipes import Callback
from secateur.training.context import launch
from secateur.training.evaluate import evaluate as judge
from secateur.training.interrupt import interruptible
from secateur.training.settings import DeviceSettings


def evaluate(
    choice: NetworkChoice,
    data_choice: DataChoice,
    device: DeviceSettings | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Compute accuracy and loss of a network on the test images; of a detector its mAP.

    Args:
        choice: the network.
        data_choice: the images; only ``test/`` (or ``val/``) is needed.
        device: where to compute.
        callbacks: receive progress and notes.

    Returns:
        ``network``, ``model``, ``top1``, ``loss``, ``examples`` and ``skipped``; for a detector what
        :func:`secateur.jobs.detector.evaluate_boxes` returns.

    Raises:
        SecateurError: the message says what is wrong.
    """
    if is_detector(choice.source) or data_choice.has_boxes:
        return evaluate_boxes(choice, data_choice, device, callbacks)
    with launch(device) as context, interruptible(context.ranks) as interruption:
        data = open_images(data_choice, input_of(choice), seed=0, training=False)
        network = open_network(choice, data.classes)
        network.model.to(context.device)
        check_outputs(network, data.classes)
        found = judge(
            network.model,
            data.test_batches(),
            context=replace(
                context, callbacks=callbacks if context.ranks.is_main else (), interruption=interruption
            ),
        )
    report_skipped(data, callbacks)
    return {
        "network": choice.source,
        "model": network.name,
        "top1": found.metric,
        "loss": found.loss,
        "examples": found.examples,
        "skipped": list(data.skipped),
    }
