from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from secateur.graph.capture.program import ExampleInputs, call_arguments, mode_of


def evaluate(model: nn.Module, inputs: ExampleInputs) -> tuple[Any, ...]:
    """The flat outputs of a network in evaluation mode, run as users run it."""
    args, kwargs = call_arguments(inputs)
    with mode_of(model, training=False), torch.no_grad():
        return tuple(tree_leaves(model(*args, **kwargs)))
