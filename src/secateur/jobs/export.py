"""Write a network for another runtime: the job behind ``secateur export``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.export import Description
from secateur.export import export as write
from secateur.jobs.images import open_images, report_skipped
from secateur.jobs.measure import measure
from secateur.jobs.networks import captured_network, check_outputs, input_of, open_network, refuse_ultralytics
from secateur.jobs.pretrained import IN_ULTRALYTICS
from secateur.jobs.settings import Conditions, DataChoice, ExportChoice, NetworkChoice
from secateur.recipes import Callback
from secateur.training.events import report_note, report_progress
from secateur.training.run_folder import note_exported
from secateur.training.settings import DeviceSettings

_COMPARED, _CALIBRATED = 8, 256
"""Numbers of images for comparing the file with the network, and for the ranges of int8."""


def export(
    choice: NetworkChoice,
    wanted: ExportChoice,
    data_choice: DataChoice | None = None,
    *,
    seconds: float = 1.0,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Write a network in another format, read it back, compare, and measure both.

    Of a detector of torchvision, what its heads compute is written; boxes are chosen outside the file.

    Args:
        choice: the network.
        wanted: format, file, and how weights are kept.
        data_choice: images for the comparison, the quantisation, and the evaluation of both.
        seconds: time spent on measuring each.
        callbacks: receive progress and notes.

    Returns:
        ``file``, ``format``, ``file_bytes``, ``weights_as``, ``params``, ``macs`` and ``check`` of the file;
        ``networks`` and ``latency`` as ``measure`` returns them, of the network and of the file.

    Raises:
        UsageError: it is a network of ultralytics, which that library exports.
        SecateurError: the message says what is wrong; no file is written then.
    """
    refuse_ultralytics(choice, IN_ULTRALYTICS)
    quantised = wanted.weights_as == "int8"
    if quantised and data_choice is None:
        raise UsageError("int8 needs --data: images set the range of every activation")
    data = None
    if data_choice is not None:
        data = open_images(data_choice, input_of(choice), seed=0, training=quantised)
    network = open_network(choice, data.classes if data else None)
    refuse_ultralytics(choice, IN_ULTRALYTICS, network.model)
    network = captured_network(network)
    inputs, calibration = None, None
    if data is not None:
        check_outputs(network, data.classes)
        inputs = next(iter(data.test_batches()))[0][:_COMPARED]
        calibration = _first(data.training_batches(augment=False), _CALIBRATED) if quantised else None
        report_skipped(data, callbacks)
    report_progress(callbacks, "exporting", 0, 1)
    done = write(
        wanted.out,
        network.model,
        network.example(),
        format=wanted.format,
        weights_as=wanted.weights_as,
        calibration=calibration,
        check_inputs=inputs,
        description=Description(network.input, network.classes, network.name),
    )
    report_progress(callbacks, "exporting", 1, 1)
    note_exported(done.path)
    report_note(callbacks, f"{done.path}: {done.check}")
    found = measure(
        [choice, NetworkChoice(source=str(wanted.out), trusted=True)],
        data_choice,
        conditions=Conditions(seconds=seconds),
        device=DeviceSettings(accelerator="cpu", precision="float32"),
        callbacks=callbacks,
    )
    return {**done.to_dict(), **found}


def _first(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> list[Tensor]:
    """Take batches until there are `count` examples."""
    found: list[Tensor] = []
    for inputs, _ in batches:
        found.append(torch.as_tensor(inputs))
        if sum(map(len, found)) >= count:
            break
    return found
