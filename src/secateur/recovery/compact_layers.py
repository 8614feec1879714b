"""Run the layers of a masked network without multiplying by the masked channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from secateur.graph.capture.nodes import named_arguments, operator_name
from secateur.graph.capture.operators import PATCH_LAYERS
from secateur.graph.checking.masked import MaskedInterpreter
from secateur.graph.labels import BoolArray
from secateur.graph.propagation.findings import Read
from secateur.graph.wiring import Wiring

_LARGEST_SHARE = 0.8  # of a layer's products that remain; if more remain, the whole layer is faster


class CompactInterpreter(MaskedInterpreter):
    """Mask channels like the masked original, but compute only the kept products of large layers.

    Linear layers and convolutions without groups receive only the kept input channels and compute only the
    kept output channels; the others are zero. No consumer reads those, so later values do not differ.
    Layers with few masked channels run completely, with masked inputs.

    Args:
        wiring: the network's wiring, with the captured program.
        gone: per slot, whether its channel was cut before; the program's sizes do not include it.
        removed: per slot, whether its channel is masked.
    """

    def __init__(self, wiring: Wiring, gone: BoolArray, removed: BoolArray) -> None:
        super().__init__(wiring.evaluation, removed)
        names = wiring.program.tensor_names
        self._kept_positions: dict[str, tuple[Tensor, Tensor]] = {}
        for node in wiring.program.graph.nodes:
            name = names.get(str(node.args[1])) if operator_name(node) in PATCH_LAYERS else None
            if name is None or node.name in self._skipped:  # of a branch that is removed
                continue
            start, size = wiring.spans[name, 0]
            slots = slice(start, start + size)
            outputs = ~removed[slots][~gone[slots]]
            kept = _kept_positions(node, outputs, self._reads.get(node.name, ()), removed)
            if kept is not None:
                self._kept_positions[node.name] = kept

    def run_node(self, n: Node) -> Any:
        """Run one operator, only for its kept channels if that is faster."""
        kept = self._kept_positions.get(n.name)
        if kept is None:
            return super().run_node(n)
        outputs, inputs = kept
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x, weight, *others = args
        if others and others[0] is not None:
            others[0] = others[0][outputs]
        dim = 1 - weight.dim()  # -1 for a linear layer, -3 for images
        compact = self.call_function(
            n.target, (channels_of(x, dim, inputs), weight[outputs][:, inputs], *others), kwargs
        )
        return _among_zeros(compact, dim, outputs, len(weight))


def _kept_positions(
    node: Node, outputs: np.ndarray[Any, np.dtype[np.bool_]], reads: Sequence[Read], removed: BoolArray
) -> tuple[Tensor, Tensor] | None:
    """Find the kept positions of a layer's outputs and inputs; ``None`` if the layer runs completely."""
    if node.kwargs or any(read.argument for read in reads) or named_arguments(node).get("groups", 1) != 1:
        return None
    rows, columns = (int(size) for size in node.args[1].meta["val"].shape[:2])  # type: ignore[union-attr]
    inputs = np.ones(columns, dtype=bool)
    for read in reads:
        inputs &= ~removed[read.labels]
    products = int(outputs.sum()) * int(inputs.sum())
    if not 0 < products <= _LARGEST_SHARE * rows * columns:
        return None
    return torch.from_numpy(np.flatnonzero(outputs)), torch.from_numpy(np.flatnonzero(inputs))


def channels_of(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Select some channels of a value, in the memory layout of the value, which is the fastest.

    Args:
        x: the value.
        dim: the dimension of the channels.
        index: the channels.
    """
    if _has_channels_innermost(x):
        return x.movedim(dim, -1)[..., index].movedim(-1, dim)
    return x.index_select(dim, index.to(x.device))


def _among_zeros(x: Tensor, dim: int, index: Tensor, size: int) -> Tensor:
    """Put channels at their positions among zeros, in the memory layout of ``x``."""
    shape = list(x.shape)
    shape[dim] = size
    layout = torch.channels_last if _has_channels_innermost(x) else torch.contiguous_format
    wide = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    return wide.zero_().index_copy_(dim, index.to(x.device), x)


def _has_channels_innermost(x: Tensor) -> bool:
    """Return whether the channels of images are innermost in memory."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
