"""Open ONNX files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from secateur.errors import CheckpointError
from secateur.formats import first_line
from secateur.integrations.libraries import library
from secateur.runtimes.base import Batch, Runner, existing
from secateur.runtimes.metadata import KEY, ExportMetadata

NAME = "onnxruntime"
_ERRORS_ONLY = 3


def open_onnx(path: str | Path, threads: int | None = None) -> Runner:
    """Open an ONNX file on the CPU.

    Args:
        path: the file; Secateur need not have written it.
        threads: within an operator; by default what PyTorch is set to.

    Returns:
        The runner.

    Raises:
        UsageError: there is no such file, or ONNX Runtime is not installed.
        CheckpointError: the file cannot be read.
    """
    ort = library("onnxruntime")
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that spin after a run would slow down the next measurement.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    file = existing(path)
    try:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # foreign bytes fail in many ways
        raise CheckpointError(f"{path} cannot be opened as ONNX: {first_line(error)}") from error
    names = [item.name for item in session.get_inputs()]

    def run(inputs: Batch) -> tuple[Tensor, ...]:
        arrays = {
            name: item.detach().cpu().contiguous().numpy() for name, item in zip(names, inputs, strict=True)
        }
        return tuple(torch.from_numpy(array) for array in session.run(None, arrays))

    shapes = tuple(tuple(item.shape[1:]) for item in session.get_inputs())
    fixed = all(isinstance(size, int) for shape in shapes for size in shape)
    metadata = ExportMetadata.from_json(session.get_modelmeta().custom_metadata_map.get(KEY))
    return Runner(NAME, run, shapes if fixed else (), metadata)
