"""OpenVINO's files (IR: ``.xml`` with a ``.bin`` beside it) on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import CheckpointError
from secateur.runtimes.base import Batch, Runner, existing, first_line
from secateur.runtimes.card import KEY, Card
from secateur.runtimes.optional import optional
from secateur.runtimes.signals import signal_stack_kept

NAME = "openvino"


def open_openvino(path: str | Path, threads: int | None = None) -> Runner:
    """Opens a network in OpenVINO's own format.

    Products are computed in float32: OpenVINO would take bfloat16 where the processor has units for it.

    Args:
        path: the ``.xml`` file; its weights are in the ``.bin`` beside it.
        threads: for one batch; by default what PyTorch is set to.

    Returns:
        What runs it.

    Raises:
        UsageError: there is no such file, or OpenVINO is not installed.
        CheckpointError: the files cannot be read.
    """
    ov = optional("openvino")
    file = existing(path)
    settings = {
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        with signal_stack_kept():
            core = ov.Core()
            model = core.read_model(file)
            compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:  # foreign bytes fail in many ways
        raise CheckpointError(f"{path} cannot be opened by OpenVINO: {_reason(error)}") from error

    def run(inputs: Batch) -> tuple[Tensor, ...]:
        found = compiled([item.detach().cpu().contiguous().numpy() for item in inputs])
        # A copy, since the next run writes into the same memory.
        return tuple(torch.from_numpy(found[place].copy()) for place in compiled.outputs)

    return Runner(NAME, run, _shapes(model), Card.from_json(_told(model)))


def _shapes(model: Any) -> tuple[tuple[int, ...], ...]:
    shapes = [list(place.partial_shape)[1:] for place in model.inputs]
    if any(size.is_dynamic for shape in shapes for size in shape):
        return ()
    return tuple(tuple(size.get_length() for size in shape) for shape in shapes)


def _told(model: Any) -> str | None:
    return str(model.get_rt_info([KEY]).astype(str)) if model.has_rt_info([KEY]) else None


def _reason(error: Exception) -> str:
    """The last line with words: before it come places in OpenVINO's own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
