"""Judge a network on pictures: the job behind ``secateur evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.jobs.networks import check_outputs, input_of, open_network
from secateur.jobs.pictures import open_pictures, tell_skipped
from secateur.jobs.settings import DataChoice, NetworkChoice
from secateur.recipes import Callback
from secateur.training.crew import joined
from secateur.training.evaluate import evaluate as judge
from secateur.training.interrupt import interruptible
from secateur.training.settings import DeviceSettings


def evaluate(
    choice: NetworkChoice,
    data_choice: DataChoice,
    device: DeviceSettings | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Accuracy and loss of a network on the test pictures.

    Args:
        choice: the network.
        data_choice: the pictures; only ``test/`` (or ``val/``) is needed.
        device: where to compute.
        callbacks: receive how it goes.

    Returns:
        ``network``, ``model``, ``top1``, ``loss``, ``examples`` and ``skipped``.

    Raises:
        SecateurError: the message says what is wrong.
    """
    with joined(device) as machine, interruptible(machine.ranks) as interruption:
        data = open_pictures(data_choice, input_of(choice), seed=0, training=False)
        network = open_network(choice, data.classes)
        network.model.to(machine.device)
        check_outputs(network, data.classes)
        found = judge(
            network.model,
            data.test_batches(),
            machine=machine,
            callbacks=callbacks if machine.ranks.first else (),
            interruption=interruption,
        )
    tell_skipped(data, callbacks)
    return {
        "network": choice.source,
        "model": network.name,
        "top1": found.top1,
        "loss": found.loss,
        "examples": found.examples,
        "skipped": list(data.skipped),
    }
