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
    """Compare a cut network with the original in which the removed channels are held at zero.

    Every tensor must hold what the plan leaves of the original one, bit for bit. Both networks are then run.
    Every operator of the original that contracts over channels sees zeros in place of the removed ones;
    normalisation over channels takes its statistics from the kept ones. Both sides compute in float64,
    whatever the dtype of the model, on the given inputs and on random draws of the same shapes (two; more
    where a pass is cheap and has few examples), in evaluation and in training mode, there with the buffers
    that the pass writes to. Dropout keeps everything on both sides, and other random numbers are the
    same. Every slice of every output is judged on its own scale. Other values than tensors, and the keys of
    dictionaries, must be equal. An output that does not depend on the inputs counts as not checked. Where
    parameters or buffers hold one value throughout, which may hide a branch, both networks are run with
    random values in their place as well.

    Nothing is changed: no attribute, parameter, buffer, hook, mode or random state. What is needed beside
    the networks are random values for constant tensors, a copy of the cut network's parameters, which are
    put back should it write to them, the
    original's weights in original sizes where it was cut before, the float64 copy of the weights of one
    operator at a time, and the float64 activations of the given inputs.

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
    """Find a tensor of a cut copy that lies in the memory of the original."""
    if pruned is model:
        return None
    own = {_address(tensor): name for name, tensor in named_tensors(model).items()}
    for name, tensor in named_tensors(pruned).items():
        found = own.get(_address(tensor))
        if found is not None and _address(tensor):
            return f"'{name}' shares its memory with '{found}' of the original"
    return None


def _address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; zero if it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
