"""Reconstruction: the consumers of cut channels are refitted by least squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.graph.cutting import by_tensor, cut_tensor, named_tensors
from secateur.graph.fit import misfit
from secateur.precision import full_precision
from secateur.recovery.consumers import find_consumers
from secateur.recovery.layout import laid_out
from secateur.recovery.refit import Refit, Repair
from secateur.recovery.run import Run
from secateur.recovery.script import write_script
from secateur.untouched import untouched

if TYPE_CHECKING:
    from secateur.plan import PruningPlan


@untouched()
@full_precision()
def reconstruct(
    model: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Any],
    *,
    ridge: float = 1e-3,
    rows_per_unknown: int = 20,
    behind: bool = True,
    compensate: bool = True,
    max_examples: int | None = None,
    memory: int = 2 << 30,
) -> tuple[Repair, ...]:
    """Refits the consumers of cut channels so that they respond as those of the original network.

    In the order of the forward pass, each convolution (of any kernel, stride, dilation and groups)
    and each linear layer that reads cut channels gets the weights W and the constant b with

        min E ‖y − W x − b‖² + λ ‖W − W₀‖²,   λ = ridge · mean diagonal of E[x xᵀ],

    x being the patches that it reads in the cut network, repaired so far, y the original network's
    responses at the same place, W₀ its weights as they are (He et al., "Channel Pruning for Accelerating
    Very Deep Neural Networks", arXiv 1707.06168, section 3). The constant goes into the bias; a
    consumer without one that a batch norm follows hands it to the running mean; else it is left out.

    A few hundred examples are enough and labels are not needed. Both networks run in evaluation
    mode, step by step, all examples side by side, and only values at one place of the network are held;
    where those are larger than ``memory``, fewer examples are used there, and the others join in later.
    Not refitted: weights that several steps share, weights that are computed, transposed
    convolutions, matrix products, and depthwise convolutions, which hand each channel on by itself.
    Batch-norm statistics stay but for that constant; see :func:`secateur.recovery.recalibrate`.

    Args:
        model: the network before the cut; left as it is.
        pruned: the network after the cut; its weights, biases and running means are changed in place.
        plan: the plan that led from one to the other.
        batches: inputs, or pairs of inputs and targets (which are not used), batch first.
        ridge: strength of the pull toward the old weights; 0 for plain least squares.
        rows_per_unknown: output positions are drawn (the same ones at every call) where the examples
            give more than so many rows for each unknown of a consumer.
        behind: refit also consumers of whole channels that come after the first cut, since what
            they read has changed too.
        compensate: where a response is added to another value (a shortcut), it makes up for what that
            value misses already.
        max_examples: how many examples to use; all by default.
        memory: bytes for the values of both networks.

    Returns:
        For each consumer that was refitted, in order, what it missed before and misses now.

    Raises:
        UsageError: there are no examples, or the networks and the plan do not belong together.

    Example:
        >>> from secateur.graph import trace
        >>> from secateur.plan import plan_from
        >>> from secateur.surgery import apply_plan
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(64, 4)
        >>> plan = plan_from(trace(net, x), {"0": [1, 5]})
        >>> small = apply_plan(net, plan)
        >>> repair = reconstruct(net, small, plan, [x])[0]
        >>> repair.module, repair.error <= repair.error_before
        ('2', True)
    """
    if ridge < 0:
        raise UsageError(f"ridge is a number of at least 0, not {ridge!r}")
    graph, found = plan.graph, named_tensors(pruned)
    _check_fit(pruned, plan)
    script = write_script(model, graph, batches, max_examples)
    removed = graph.after(plan).removed
    whole: Mapping[str, Tensor] = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    script, whole = laid_out(script, graph.removed, whole)
    laid = _widened(whole, found, plan)
    original, small = Run(script, graph.removed, whole), Run(script, removed, laid)
    repairs: list[Repair] = []
    with torch.no_grad():
        for consumer in find_consumers(script):
            if removed[consumer.labels].any() or (behind and repairs):
                portions = script.fitting(consumer.step, memory // 2)
                original.advance(consumer.step + 1, portions)
                small.advance(consumer.step, portions)
                refit = Refit(consumer, graph, original, small, ridge, rows_per_unknown, compensate)
                repairs.append(refit.apply(laid))
        kept = by_tensor(plan.kept_slots)
        for name, tensor in found.items():
            tensor.copy_(cut_tensor(laid[name], kept.get(name, {})))
    return tuple(repairs)


def _check_fit(pruned: nn.Module, plan: PruningPlan) -> None:
    """Refuses a cut network that is not what the plan leaves."""
    found = misfit(pruned, plan.graph.after(plan).tensors)
    if found is not None:
        raise UsageError(
            f"the cut network is not what the plan leaves: {found}; pass the network that apply_plan "
            "returned for this plan"
        )


def _widened(
    whole: Mapping[str, Tensor], pruned: Mapping[str, Tensor], plan: PruningPlan
) -> dict[str, Tensor]:
    """Tensors of the cut network in the sizes and layout of the original, whose values fill the gaps."""
    kept = by_tensor(plan.kept_slots)
    result = {}
    # The norm of a weight must be that of what is left of it.
    directions = {item.direction: item.dim for item in plan.graph.wiring.rescales}
    for name, tensor in pruned.items():
        wide = whole[name].clone()
        for dim, stays in kept.get(name, {}).items():
            if name in directions and dim != directions[name]:
                gone = np.setdiff1d(np.arange(wide.shape[dim]), stays)
                wide.index_fill_(dim, torch.from_numpy(gone).to(wide.device), 0.0)
        places = (kept.get(name, {}).get(dim, np.arange(size)) for dim, size in enumerate(wide.shape))
        if wide.dim():
            wide[tuple(torch.from_numpy(place) for place in np.ix_(*places))] = tensor.detach()
        else:
            wide.copy_(tensor)
        result[name] = wide
    return result
