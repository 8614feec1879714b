"""Count the costs of a network from its forward pass."""

from __future__ import annotations

import numpy as np
from torch import nn

from secateur.graph.capture.program import ExampleInputs, capture, copied_inputs, on_device_of
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.channels import Channels
from secateur.graph.costing import count_costs
from secateur.graph.costs import Cost
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.labels import SlotTable
from secateur.graph.propagation.findings import Hints
from secateur.graph.propagation.propagate import propagate
from secateur.graph.sizes.alignment import sizes_of
from secateur.graph.sizes.recording import record_run


def cost(model: nn.Module, example_inputs: ExampleInputs) -> Cost:
    """Count parameters, multiply-accumulates, bytes and activation memory of a network.

    The forward pass is captured in evaluation mode and its operators are counted by their real shapes; the
    prediction of a graph for a plan can be compared with it.

    Args:
        model: the network; not changed.
        example_inputs: the arguments of the forward pass.

    Returns:
        The cost. MACs are those of convolutions, linear layers and matrix products, for one example.

    Raises:
        TraceError: the network cannot be captured.
        UsageError: the network is wrapped, for example by ``torch.compile``.

    Example:
        >>> import torch
        >>> cost(nn.Linear(4, 8), torch.randn(1, 4)).macs
        32
    """
    refuse_wrapped(model)
    inputs = copied_inputs(on_device_of(model, example_inputs))
    program = capture(model, inputs)
    # As in a graph: rows of a table that the code picks by their number are no examples.
    sizes = sizes_of(record_run(model, inputs, training=False), program)
    slots = SlotTable({name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()})
    propagated = propagate(program, dict(model.named_modules()), slots, Hints(sizes=sizes))
    nowhere = np.full(slots.size, -1, dtype=np.int64)
    costs = count_costs(model, program, slots, propagated, Channels((), nowhere, nowhere))
    return costs.cost(np.zeros(0, dtype=np.int64))
