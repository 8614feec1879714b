"""Count the costs of a network from its forward pass."""

from __future__ import annotations

import numpy as np
from torch import nn

from secateur.graph.capture.program import ExampleInputs, capture, on_device_of, owned
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.channels import Channels
from secateur.graph.costing import Costing
from secateur.graph.costs import Cost
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.labels import SlotTable
from secateur.graph.propagation.findings import Hints
from secateur.graph.propagation.propagate import propagate


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
    program = capture(model, owned(on_device_of(model, example_inputs)))
    tensors = named_tensors(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    slots = SlotTable(shapes)
    env, findings = propagate(program, dict(model.named_modules()), slots, Hints())
    nowhere = np.full(slots.size, -1, dtype=np.int64)
    costing = Costing(Channels((), nowhere, nowhere))
    parameters = frozenset(name for name, _ in model.named_parameters())
    item_sizes = {name: tensor.element_size() for name, tensor in tensors.items()}
    costing.tensors(slots, parameters, item_sizes)
    costing.add_macs(findings, program.batch)
    costing.activations(program, env)
    return Cost(*(int(number) for number in costing.build().evaluate(np.zeros(0, dtype=np.int64))))
