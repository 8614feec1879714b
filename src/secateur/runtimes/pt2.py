"""Programs of ``torch.export`` (``.pt2``) in PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.runtimes.archive import load_program
from secateur.runtimes.base import Batch, Runner, existing
from secateur.runtimes.card import Card

NAME = "pt2"


def open_pt2(path: str | Path, threads: int | None = None) -> Runner:  # noqa: ARG001  # as its sisters do
    """Opens an exported program.

    The file is admitted first (:mod:`secateur.runtimes.archive`): nothing in it is unpickled or evaluated,
    and it can only call operators that compute.

    Args:
        path: the file.
        threads: not used: PyTorch's own number is set while the program runs.

    Returns:
        What runs it.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file cannot be read, or holds more than a network.
    """
    program, told = load_program(existing(path))
    module = program.module()

    def run(inputs: Batch) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return tuple(leaf for leaf in tree_leaves(module(*inputs)) if isinstance(leaf, Tensor))

    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [values.get(name) for name in program.graph_signature.user_inputs]
    fixed = tuple(
        tuple(int(size) for size in value.shape[1:]) for value in shapes if isinstance(value, Tensor)
    )
    return Runner(NAME, run, fixed, Card.from_json(told))
