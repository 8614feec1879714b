"""OpenVINO's own format: ``.xml`` with the network, ``.bin`` beside it with the weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.errors import ExportError, UsageError
from secateur.export.program import Subject
from secateur.runtimes.card import KEY, Card
from secateur.runtimes.optional import optional
from secateur.runtimes.signals import signal_stack_kept


def write_openvino(path: Path, subject: Subject, card: Card, calibration: Sequence[Tensor] | None) -> None:
    """Writes a network for OpenVINO, straight from the program.

    Args:
        path: the ``.xml`` file.
        subject: the network.
        card: goes into the file's ``rt_info``; says how weights are kept.
        calibration: batches of pictures, for eight bits.

    Raises:
        UsageError: openvino, or for eight bits nncf, is not installed; or bfloat16 is asked for.
        ExportError: the network has an operator that OpenVINO lacks.
    """
    if card.weights == "bfloat16":
        raise UsageError("OpenVINO keeps weights in float32, float16 or int8, not in bfloat16")
    ov = optional("openvino")
    nncf = optional("nncf") if calibration is not None else None
    program = subject.program()
    try:
        with _quietly(), signal_stack_kept():
            shapes = [ov.PartialShape([-1, *shape]) for shape in subject.shapes]
            model = ov.convert_model(program, input=shapes)
            if nncf is not None and calibration is not None:
                batches = nncf.Dataset([batch.numpy() for batch in calibration])
                model = nncf.quantize(model, batches, subset_size=len(calibration))
    except Exception as error:  # operators fail in many ways
        reason = " ".join(str(error).split())
        raise ExportError(f"OpenVINO cannot convert the network: {reason[:300]}") from error
    _name(model.inputs, subject.arguments)
    _name(model.outputs, subject.output_names)
    model.set_rt_info(card.to_json(), [KEY])
    ov.save_model(model, str(path), compress_to_fp16=card.weights == "float16")


def _name(places: Sequence[Any], names: Sequence[str]) -> None:
    for place, name in zip(places, names, strict=True):
        place.get_tensor().set_names({name})


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars or advice from these libraries."""
    log = logging.getLogger("nncf")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
