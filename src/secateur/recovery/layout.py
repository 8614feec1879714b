"""Layouts: on a CPU, a forward pass is fastest with the channels of pictures innermost in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from secateur.devices import channels_last
from secateur.graph.masked import Removed
from secateur.recovery.run import Run
from secateur.recovery.script import Script


def laid_out(
    script: Script, removed: Removed, tensors: Mapping[str, Tensor]
) -> tuple[Script, Mapping[str, Tensor]]:
    """The same forward pass with the channels innermost, where that is faster and comes to the same.

    A captured program may depend on the layout: a view of the values behind a convolution as one row is
    none any more. So the first portion is run in both layouts, and the old one is kept if they disagree.

    Args:
        script: the forward pass and the examples.
        removed: per slot, whether its channel is masked.
        tensors: parameters and buffers by name.

    Returns:
        The script and the tensors to run it with, either both as they were or both in the new layout.
    """
    if all(tensor.dim() != 4 or tensor.device.type != "cpu" for tensor in tensors.values()):
        return script, tensors
    changed = replace(
        script,
        portions=tuple(
            replace(portion, leaves=tree_map_only(Tensor, channels_last, portion.leaves))
            for portion in script.portions
        ),
    )
    inner = {name: channels_last(tensor) for name, tensor in tensors.items()}
    if _agree(Run(script, removed, tensors), Run(changed, removed, inner)):
        return changed, inner
    return script, tensors


def _agree(one: Run, other: Run) -> bool:
    """Whether the first portion comes to the same."""
    expected = one.outputs(1)
    try:
        found = other.outputs(1)
    except RuntimeError:  # a view that is none in this layout
        return False
    scale = float(expected.abs().max())
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)
