"""What each layer of a network costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from secateur.graph import ChannelGraph
from secateur.graph.groups import IntArray
from secateur.graph.labels import SlotTable
from secateur.graph.notes import Hints
from secateur.graph.walk import walk


@dataclass(frozen=True)
class Layer:
    """One module that holds parameters or multiplies.

    Attributes:
        name: path of the module.
        kind: its class.
        params: elements of the parameters that it holds itself.
        macs: multiply-accumulates of one forward pass, for one example.
    """

    name: str
    kind: str
    params: int
    macs: int


def layers(model: nn.Module, graph: ChannelGraph) -> tuple[Layer, ...]:
    """The costs of a network, layer by layer, in the order of the network.

    Args:
        model: the network that was traced, uncut.
        graph: its channel graph; if that is what is left after cuts, so are the costs.

    Returns:
        Every module with parameters or multiply-accumulates of its own; their sums are the network's.

    >>> import torch
    >>> from secateur.graph import trace
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [(layer.name, layer.params, layer.macs) for layer in layers(net, trace(net, torch.randn(1, 4)))]
    [('0', 40, 32), ('2', 18, 16)]
    """
    modules = dict(model.named_modules())
    program = graph.wiring.program
    _, notes = walk(program, modules, SlotTable(graph.wiring.shapes), Hints())
    macs: dict[str, int] = {}
    for item in notes.work:
        product = item.coefficient * math.prod(_left(labels, graph) for labels in item.extents)
        macs[item.module] = macs.get(item.module, 0) + product
    found = []
    for name, module in modules.items():
        params = sum(
            math.prod(graph.tensors.get(f"{name}.{own}".lstrip("."), parameter.shape))
            for own, parameter in module.named_parameters(recurse=False)
        )
        if params or macs.get(name):
            found.append(Layer(name, type(module).__name__, params, macs.get(name, 0) // program.batch))
    return tuple(found)


def _left(labels: IntArray, graph: ChannelGraph) -> int:
    """How many of the positions that a label vector names are still there."""
    return int(((labels < 0) | ~graph.removed[labels]).sum())
