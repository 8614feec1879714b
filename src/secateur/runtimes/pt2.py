"""Open programs of ``torch.export`` (``.pt2``) in PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from secateur._compat import tree_leaves
from secateur.errors import CheckpointError
from secateur.formats import first_line
from secateur.runtimes.base import Batch, Runner, existing
from secateur.runtimes.metadata import ExportMetadata

NAME = "pt2"
METADATA = "secateur.json"
"""Name of the extra file in the archive that holds the metadata."""


def open_pt2(path: str | Path) -> Runner:
    """Open an exported program with ``torch.export.load``.

    Open trusted files only: PyTorch unpickles parts of the file and evaluates text in it, so a file can run
    any code.

    Args:
        path: the file.

    Returns:
        The runner, with PyTorch's number of threads.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file cannot be read.
    """
    file, extra = existing(path), {METADATA: ""}
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.export.load(file, extra_files=extra)
    except Exception as error:  # damaged files fail in many ways
        raise CheckpointError(f"{path} cannot be opened as a program: {first_line(error)}") from error
    module = program.module()

    def run(inputs: Batch) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return tuple(leaf for leaf in tree_leaves(module(*inputs)) if isinstance(leaf, Tensor))

    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [values.get(name) for name in program.graph_signature.user_inputs]
    fixed = tuple(
        tuple(int(size) for size in value.shape[1:]) for value in shapes if isinstance(value, Tensor)
    )
    return Runner(NAME, run, fixed, ExportMetadata.from_json(extra[METADATA]))
