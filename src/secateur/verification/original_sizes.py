"""Expand cut tensors to their original sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.graph.channel_graph import ChannelGraph


def original_sizes(graph: ChannelGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Expand the tensors of a cut network with zeros to the sizes that it was traced with.

    Args:
        graph: the graph of the present network.
        tensors: its parameters and buffers by name.

    Returns:
        Tensors of the original shapes, without those of residual branches that were removed before; tensors
        that were never cut are returned unchanged.
    """
    return {name: original_size(graph, name, tensors[name].detach()) for name in graph.tensors}


def original_size(graph: ChannelGraph, name: str, tensor: Tensor) -> Tensor:
    """Expand a tensor of a cut network with zeros to the size that it was traced with.

    Args:
        graph: the graph of the present network.
        name: of the parameter or buffer.
        tensor: its values.

    Returns:
        A tensor of the original shape; the same one if it was never cut.
    """
    # A cut row of a normalised weight still has a norm as divisor.
    rows = {item.direction: item.dim for item in graph.wiring.rescales}
    for dim, size in enumerate(graph.wiring.shapes[name]):
        if tensor.shape[dim] != size:
            wide = list(tensor.shape)
            wide[dim] = size
            index = torch.as_tensor(graph.positions(name, dim), device=tensor.device)
            blank = tensor.new_ones(wide) if rows.get(name) == dim else tensor.new_zeros(wide)
            tensor = blank.index_copy(dim, index, tensor)
    return tensor
