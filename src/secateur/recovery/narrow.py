"""Narrow steps: a layer of a cut network computes only what the cut has left of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from secateur.graph.masked import MaskedInterpreter, Removed
from secateur.graph.notes import Read
from secateur.recovery.consumers import OPERATORS, arguments
from secateur.recovery.script import Script, tensors_of

_WORTH = 0.8  # share of a layer's products above which gathering and scattering does not pay


class NarrowInterpreter(MaskedInterpreter):
    """Masks channels as the masked original does, but without multiplying by the zeros.

    Linear layers and convolutions without groups are given the channels that stay and compute those that
    stay; the rest of the result is zeros. No reader looks at those, so nothing that comes later differs.

    Args:
        script: the forward pass.
        removed: per slot, whether its channel is masked.
    """

    def __init__(self, script: Script, removed: Removed) -> None:
        super().__init__(script.wiring.evaluation, removed)
        names = tensors_of(script.program)
        self._stay = {
            node.name: _staying(script, node, removed, self._reads.get(node.name, ()), weight)
            for node in script.nodes
            if str(node.target).startswith(OPERATORS)
            for weight in (names.get(str(node.args[1])),)
        }

    def run_node(self, n: Node) -> Any:
        """Runs one operator, with what stays of it where that pays."""
        stays = self._stay.get(n.name)
        if stays is None:
            return super().run_node(n)
        outputs, inputs = stays
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x, weight, *others = args
        if others and others[0] is not None:
            others[0] = others[0][outputs]
        dim = 1 - weight.dim()  # -1 for a linear layer, -3 for pictures
        small = self.call_function(
            n.target, (taken(x, dim, inputs), weight[outputs][:, inputs], *others), kwargs
        )
        return _spread(small, dim, outputs, len(weight))


def _staying(
    script: Script, node: Node, removed: Removed, reads: Sequence[Read], name: str | None
) -> tuple[Tensor, Tensor] | None:
    """Positions of a layer's outputs and inputs that stay; ``None`` where it had better run as it is."""
    if name is None or node.kwargs or any(read.argument for read in reads):
        return None
    if arguments(node).get("groups", 1) != 1:
        return None
    rows, columns = (int(size) for size in node.args[1].meta["val"].shape[:2])  # type: ignore[union-attr]
    start, size = script.wiring.spans[name, 0]
    slots = slice(start, start + size)
    outputs, inputs = ~removed[slots][~script.gone[slots]], np.ones(columns, dtype=bool)
    for read in reads:
        inputs &= ~removed[read.labels]
    products = int(outputs.sum()) * int(inputs.sum())
    if not 0 < products <= _WORTH * rows * columns:
        return None
    return torch.from_numpy(np.flatnonzero(outputs)), torch.from_numpy(np.flatnonzero(inputs))


def taken(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Some channels of a value, in the layout of the whole, which is much faster than in another.

    Args:
        x: the value.
        dim: the dimension of the channels.
        index: the channels.
    """
    if _innermost(x):
        return x.movedim(dim, -1)[..., index].movedim(-1, dim)
    return x.index_select(dim, index.to(x.device))


def _spread(x: Tensor, dim: int, index: Tensor, size: int) -> Tensor:
    """Channels laid back among zeros, in their layout."""
    shape = list(x.shape)
    shape[dim] = size
    layout = torch.channels_last if _innermost(x) else torch.contiguous_format
    wide = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    return wide.zero_().index_copy_(dim, index.to(x.device), x)


def _innermost(x: Tensor) -> bool:
    """Whether the channels of pictures lie innermost in memory."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
