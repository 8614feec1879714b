"""Convert a budget for the body of a language model: all parameters but its embeddings."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from secateur.budget.limits import amount_of
from secateur.errors import UsageError

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph


def params_of_body(graph: ChannelGraph, share: float) -> int:
    """Convert a share of the body to the number of parameters that a budget of the whole network takes.

    The body is all parameters but tables of embeddings, and output layers of the shape of such a table, which
    score every entry of the vocabulary. They do not count, since a plan that cuts hidden units and heads
    leaves them whole. If a plan cuts the width of the stream, what goes of the embeddings counts as saved.

    Args:
        graph: the graph of the network.
        share: what may remain of the body, between 0 and 1.

    Returns:
        Parameters of the whole network, for ``Budget(params=...)``.

    Raises:
        UsageError: it is no share, or the network looks up no embeddings.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Embedding(100, 4), nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> params_of_body(trace(net, torch.zeros(1, 3, dtype=torch.int64)), 0.5)  # 400 and half of 142
        471
    """
    if not 0 < share < 1:
        raise UsageError(f"{share!r} is no share of the body; write a float between 0 and 1, such as 0.8")
    program = graph.wiring.program
    names = program.tensor_names
    tables = {
        names[source.name]
        for node in program.graph.nodes
        if str(node.target).startswith("aten.embedding.")
        for source in node.all_input_nodes[:1]
        if source.name in names
    }
    if not tables:
        raise UsageError("this network looks up no embeddings; give the share as Budget(params=...)")
    shapes = {graph.tensors[name] for name in tables}
    outside = sum(prod(shape) for shape in graph.tensors.values() if shape in shapes)
    body = graph.cost().params - outside
    return outside + amount_of(float(share), body)
