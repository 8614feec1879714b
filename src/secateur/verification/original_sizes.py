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
        Tensors of the original shapes; tensors that were never cut are returned unchanged. Those of removed
        residual branches are zeros.
    """
    wiring = graph.wiring
    # A network may have been moved, or converted to another precision as a whole.
    sample = next(item for item in tensors.values() if item.is_floating_point())

    def blank(name: str) -> Tensor:
        dtype = wiring.dtypes[name]
        return sample.new_zeros(wiring.shapes[name], dtype=sample.dtype if dtype.is_floating_point else dtype)

    return {
        name: original_size(graph, name, tensors[name].detach()) if name in tensors else blank(name)
        for name in wiring.shapes
    }


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
