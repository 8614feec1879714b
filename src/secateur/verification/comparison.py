"""Compare a cut network with the original."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.graph.capture.program import ExampleInputs
from secateur.graph.cutting.tensors import named_tensors
from secateur.verification.arguments import refuse_inputs, refuse_model, refuse_pruned
from secateur.verification.expectation import Expectation
from secateur.verification.outcome import Verification

if TYPE_CHECKING:
    from secateur.plan import PruningPlan


def verify(
    model: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    inputs: ExampleInputs,
    tolerance: float | None = None,
) -> Verification:
    """Compare a cut network with the original in which the removed channels are set to zero.

    Every tensor must equal the part of the original that the plan keeps, bit for bit. Both networks are then
    run. Every operator of the original that contracts over channels sees zeros in place of the removed ones;
    normalisation over channels takes its statistics from the kept ones. Both networks compute in float64,
    whatever the dtype of the model, on the given inputs and on random draws of the same shapes (two; more if
    a pass is cheap and has few examples), in evaluation and in training mode; in training mode, the buffers
    that the pass writes to are compared too. Dropout scales in both networks instead of dropping, and other
    random numbers are equal. Every slice of every output is compared on its own scale. Other values than
    tensors, and the keys of dictionaries, must be equal. An output that does not depend on the inputs counts
    as not checked. If all values of a parameter or buffer are equal, which may hide a branch, both networks
    are also run with random values in its place.

    Nothing is changed: no attribute, parameter, buffer, hook, mode or random state. Besides
    the networks, memory is needed for random values for constant tensors, a copy of the cut network's
    parameters (restored if it writes to them), the original's weights in original sizes if it was cut
    before, the float64 copy of the weights of one operator at a time, and the float64 activations of the
    given inputs.

    Args:
        model: the network before the cut.
        pruned: the network after the cut.
        plan: the plan that led from one to the other.
        inputs: inputs of the shapes that the graph was traced with; the batch size may differ.
        tolerance: largest relative difference of a slice that counts as equal; 1e-8 by default.

    Returns:
        The largest relative difference, the tolerance, the verdict, and what was compared.

    Raises:
        UsageError: the networks and the plan do not belong together, the inputs do not have the shapes that
            the graph was traced with, or the original does not run on them.

    Example:
        >>> from secateur.graph.tracing import trace
        >>> from secateur.plan import plan_from
        >>> from secateur.surgery import apply_plan
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> plan = plan_from(trace(net, x), {"0": [1, 5]})
        >>> verify(net, apply_plan(net, plan), plan, x).ok
        True
    """
    refuse_model(model, plan)
    refuse_pruned(pruned, plan)
    expected = Expectation.of(model, plan, inputs, tolerance)
    shared = _shared_memory(model, pruned)
    found = expected.check(pruned)
    if found.outputs == 0 and found.problem is not None:
        refuse_inputs(model, plan, inputs)
    return replace(found, problem=found.problem or shared)


def _shared_memory(model: nn.Module, pruned: nn.Module) -> str | None:
    """Find a tensor of a cut copy that uses memory of the original."""
    if pruned is model:
        return None
    own = {_address(tensor): name for name, tensor in named_tensors(model).items()}
    for name, tensor in named_tensors(pruned).items():
        found = own.get(_address(tensor))
        if found is not None and _address(tensor):
            return f"'{name}' shares its memory with '{found}' of the original"
    return None


def _address(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; zero if it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
