"""Lay tensors that were cut back into their original sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.graph.channel_graph import ChannelGraph


def original_sizes(graph: ChannelGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lay the tensors of a network that has been cut back into zeros of the sizes it was traced with.

    Args:
        graph: the graph of the network as it is now.
        tensors: its parameters and buffers by name.

    Returns:
        Tensors of the original shapes; those that were never cut are handed on as they are.
    """
    return {name: original_size(graph, name, tensors[name].detach()) for name in graph.wiring.shapes}


def original_size(graph: ChannelGraph, name: str, tensor: Tensor) -> Tensor:
    """Lay a tensor of a network that has been cut back into zeros of the size it was traced with.

    Args:
        graph: the graph of the network as it is now.
        name: of the parameter or buffer.
        tensor: its values.

    Returns:
        A tensor of the original shape; the same one if it was never cut.
    """
    # A row of a normalised weight that was cut still has a norm to be divided by.
    rows = {item.direction: item.dim for item in graph.wiring.rescales}
    for dim, size in enumerate(graph.wiring.shapes[name]):
        if tensor.shape[dim] != size:
            wide = list(tensor.shape)
            wide[dim] = size
            index = torch.as_tensor(graph.positions(name, dim), device=tensor.device)
            blank = tensor.new_ones(wide) if rows.get(name) == dim else tensor.new_zeros(wide)
            tensor = blank.index_copy(dim, index, tensor)
    return tensor
