"""Reconstruct the responses of a network: refit what reads pruned channels or lost residual branches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.graph.cutting.fit import misfit
from secateur.graph.cutting.tensors import by_tensor, cut_tensor, named_tensors
from secateur.precision import full_precision
from secateur.recovery.captured_forward import CapturedForward, capture_forward
from secateur.recovery.compact_layers import channels_of
from secateur.recovery.consumers import Consumer
from secateur.recovery.partial_forward import PartialForward, with_channels_innermost
from secateur.responses import Moments, blocks, fit_dual, fit_moments, positions, rows_to_take
from secateur.untouched import untouched

if TYPE_CHECKING:
    from secateur.graph.groups import IntArray
    from secateur.plan import PruningPlan

_MOST_REFITTED = 8  # consumers after a removed residual branch

_LEAST_SCALE = 1e-3  # of a batch norm; with a smaller one, a response cannot correct a shortcut


@dataclass(frozen=True)
class LeastSquares:
    """Settings of the fit of consumers.

    Attributes:
        ridge: strength of the regularisation toward the old weights, relative to the mean patch energy; 0 for
            plain least squares.
        rows_per_unknown: at most so many output positions are used for each unknown of a consumer (but
            at least 4096). They are drawn at random, the same at every call.
        max_examples: number of examples that are used; all by default.

    Raises:
        UsageError: the ridge is negative.

    Example:
        >>> LeastSquares(ridge=0.01).rows_per_unknown
        20
    """

    ridge: float = 1e-3
    rows_per_unknown: int = 20
    max_examples: int | None = None

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise UsageError(f"ridge is a number of at least 0, not {self.ridge!r}")


@dataclass(frozen=True)
class Reconstruction:
    """The errors of one consumer before and after its fit.

    Attributes:
        module: path of the consumer.
        error_before: share of the energy of the target responses that was missing before, with the
            best constant if there is one.
        error: share that is missing after the fit.

    Example:
        >>> print(Reconstruction("layer1.0.conv2", 0.25, 0.01))
        layer1.0.conv2: 25.0% of the response missed, now 1.0%
    """

    module: str
    error_before: float
    error: float

    def __str__(self) -> str:
        return f"{self.module}: {self.error_before:.1%} of the response missed, now {self.error:.1%}"


@untouched()
@full_precision()
def reconstruct(
    model: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Any],
    fit: LeastSquares = LeastSquares(),
    *,
    refit_downstream: bool = True,
    correct_shortcut_error: bool = True,
    memory: int = 2 << 30,
) -> tuple[Reconstruction, ...]:
    """Refit the consumers of pruned channels so that they respond as those of the original network.

    In the order of the forward pass, each convolution (of any kernel, stride, dilation and groups)
    and each linear layer that reads pruned channels, or the stream next after a removed residual branch, gets
    the weights W and the constant b with

        min E ‖y − W x − b‖² + λ ‖W − W₀‖²,   λ = ridge · mean diagonal of E[x xᵀ],

    where x are the patches that it reads in the pruned network, reconstructed so far, y are the original
    network's responses at the same place, and W₀ are its current weights (He et al., "Channel Pruning for
    Accelerating Very Deep Neural Networks", arXiv 1707.06168, section 3). The constant is added to the bias.
    If a consumer has no bias and a batch norm follows, the running mean takes the constant; otherwise there
    is no constant.

    A few hundred examples are enough and labels are not needed. Both networks run in evaluation
    mode, step by step, with all examples together, and only values at one place of the network are kept.
    If those are larger than ``memory``, fewer examples are used, and the others are added later.
    Not refitted: weights that several steps share, weights that are computed, transposed
    convolutions, matrix products, and depthwise convolutions, each output of which depends on one channel.
    Batch-norm statistics stay except for that constant; see :func:`secateur.recovery.recalibrate`.

    Args:
        model: the network before the cut; not changed.
        pruned: the network after the cut; its weights, biases and running means are changed in place.
        plan: the plan that led from one to the other.
        batches: inputs, pairs of inputs and targets (which are not used), or mappings of named
            arguments, batch first.
        fit: how to fit, and on how many examples.
        refit_downstream: also refit consumers after the first cut that read no removed channels, since their
            inputs have changed too.
        correct_shortcut_error: if a response is added to another value (a shortcut), fit it so that
            it also corrects the error of that value.
        memory: bytes for the values of both networks.

    Returns:
        For each refitted consumer, in order, its errors before and after.

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
        >>> found = reconstruct(net, small, plan, [x])[0]
        >>> found.module, found.error <= found.error_before
        ('2', True)
    """
    graph, parameters = plan.graph, named_tensors(pruned)
    _check_pruned(pruned, plan)
    forward = capture_forward(model, graph, batches, fit.max_examples)
    removed = graph.after(plan).removed
    whole: Mapping[str, Tensor] = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    forward, whole = with_channels_innermost(forward, whole)
    tensors = _widened(whole, parameters, plan)
    original = PartialForward(forward, graph.removed, whole)
    masked = PartialForward(forward, removed, tensors)
    kept = by_tensor(plan.kept_slots)
    done: list[Reconstruction] = []
    after_branches = {
        consumer.node for step in forward.adding_steps(removed) for consumer in next_consumers(forward, step)
    }
    with torch.no_grad():
        for consumer in forward.consumers:
            reads = removed[consumer.labels].any() or consumer.node in after_branches
            if consumer.weight not in parameters or not (reads or (refit_downstream and done)):
                continue
            chunks = forward.chunks_within(consumer.step, memory // 2)
            original.advance(consumer.step + 1, chunks)
            masked.advance(consumer.step, chunks)
            outputs = kept.get(consumer.weight, {}).get(0, np.arange(len(tensors[consumer.weight])))
            done.append(refit(consumer, original, masked, outputs, fit, correct_shortcut_error))
        for name, tensor in parameters.items():
            tensor.copy_(cut_tensor(tensors[name], kept.get(name, {})))
    return tuple(done)


def next_consumers(forward: CapturedForward, start: int) -> list[Consumer]:
    """List the consumers after a step that depend on its result, up to the first that adds to the stream.

    Args:
        forward: the forward pass.
        start: index of the step.
    """
    depend = {forward.nodes[start]}
    for node in forward.nodes[start:]:
        if not depend.isdisjoint(node.all_input_nodes):
            depend.add(node)
    found: list[Consumer] = []
    for consumer in forward.consumers:
        if consumer.step > start and consumer.node in depend:
            found.append(consumer)
            if consumer.addition is not None or len(found) == _MOST_REFITTED:
                break
    return found


def refit(
    consumer: Consumer,
    original: PartialForward,
    masked: PartialForward,
    outputs: IntArray,
    fit: LeastSquares,
    correct_shortcut_error: bool = True,
) -> Reconstruction:
    """Fit one consumer and write the result into the masked network's tensors.

    Args:
        consumer: the consumer.
        original: the original network, one step past the consumer.
        masked: the pruned network in the sizes of the original, at the consumer; its tensors are changed.
        outputs: positions of the consumer's output channels that are kept.
        fit: how to fit.
        correct_shortcut_error: whether the response corrects the error of the value that it is added to.
    """
    tensors, groups = masked.tensors, consumer.window.groups
    weight = tensors[consumer.weight]
    rows = torch.from_numpy(outputs).to(weight.device)
    inputs = torch.from_numpy(np.flatnonzero(~masked.removed[consumer.labels])).to(weight.device)
    columns = inputs[: len(inputs) // groups]
    block = weight.index_select(0, rows).index_select(1, columns)
    old = block.reshape(groups, len(rows) // groups, -1)
    examples = sum(chunk.count for chunk in masked.chunks)
    total = consumer.rows(examples, masked.forward.size)
    share, dual = rows_to_take(total, old.shape[2], fit.rows_per_unknown)
    pairs = _patches_and_responses(consumer, original, masked, inputs, rows, share, correct_shortcut_error)
    if dual:
        gathered = list(pairs)
        x, y = (torch.cat([pair[item] for pair in gathered], 1) for item in (0, 1))
        fitted = fit_dual(x, y, old, fit.ridge, constant=consumer.constant)
    else:
        moments = Moments()
        for x, y in pairs:
            moments.add(x, y)
        fitted = fit_moments(moments, old, fit.ridge, constant=consumer.constant)
    weight[rows] = weight[rows].index_copy(1, columns, fitted.weight.reshape(block.shape).to(weight))
    constant = fitted.constant.reshape(-1).to(weight)
    if consumer.bias is not None:
        tensors[consumer.bias][rows] = constant
    elif consumer.mean is not None:
        tensors[consumer.mean][rows] -= constant
    return Reconstruction(consumer.module, fitted.error_before, fitted.error)


def _patches_and_responses(
    consumer: Consumer,
    original: PartialForward,
    masked: PartialForward,
    inputs: Tensor,
    outputs: Tensor,
    share: float,
    correct_shortcut_error: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield patches of the masked network and target responses, block by block.

    The original network is one step past the consumer, and the masked one at it. ``inputs`` and ``outputs``
    are the positions of channels that are kept; ``share`` is that of output positions to use.
    """
    forward, window = masked.forward, consumer.window
    generator = torch.Generator().manual_seed(0)
    for number, chunk in enumerate(masked.chunks):
        x = forward.trimmed(masked.value(number, consumer.source), chunk)
        wanted = original.value(number, consumer.node)
        error = _shortcut_error(number, consumer, original, masked) if correct_shortcut_error else None
        if error is not None:
            wanted = wanted + error
        y = channels_of(forward.trimmed(wanted, chunk), consumer.dim, outputs)
        x = channels_of(x, consumer.dim, inputs)
        chosen = positions(window.positions(tuple(x.shape)), share, generator)
        yield from blocks(window, x, y, chosen)


def _shortcut_error(
    chunk: int, consumer: Consumer, original: PartialForward, masked: PartialForward
) -> Tensor | None:
    """Compute the correction of a response for the error of the value that it is added to.

    With a batch norm of scale γ and variance σ² in between, an error d of the shortcut needs ``d σ / γ``.

    Returns:
        A value of the shape of the response; ``None`` if the response is not added to another value,
        or that value is not known at this step.
    """
    addition = consumer.addition
    if addition is None or not all(run.holds(addition.shortcut) for run in (original, masked)):
        return None
    error: Tensor = original.value(chunk, addition.shortcut)
    left = masked.value(chunk, addition.shortcut)
    if left is not None:  # the value is that of a removed branch otherwise
        error = error - left
    if addition.norm is None:
        return error
    scale_name, variance_name = addition.norm
    deviation = (masked.tensors[variance_name] + addition.epsilon).sqrt()
    scale = torch.ones_like(deviation) if scale_name is None else masked.tensors[scale_name]
    factor = torch.where(scale.abs() > _LEAST_SCALE, deviation / scale, 0.0)
    return error * factor.view(-1, *[1] * (error.dim() - 2))


def _check_pruned(pruned: nn.Module, plan: PruningPlan) -> None:
    """Refuse a pruned network that is not what the plan leaves."""
    found = misfit(pruned, plan.graph.after(plan).tensors)
    if found is not None:
        raise UsageError(
            f"the pruned network is not what the plan leaves: {found}; pass the network that apply_plan "
            "returned for this plan"
        )


def _widened(
    whole: Mapping[str, Tensor], pruned: Mapping[str, Tensor], plan: PruningPlan
) -> dict[str, Tensor]:
    """Expand tensors of the pruned network to the sizes of the original, whose values fill the gaps."""
    kept = by_tensor(plan.kept_slots)
    result = dict(whole)  # those of removed residual branches are not read
    # The norm of a weight must be that of its remaining part.
    directions = {item.direction: item.dim for item in plan.graph.wiring.rescales}
    for name, tensor in pruned.items():
        wide = whole[name].clone()
        for dim, stays in kept.get(name, {}).items():
            if name in directions and dim != directions[name]:
                gone = np.setdiff1d(np.arange(wide.shape[dim]), stays)
                wide.index_fill_(dim, torch.from_numpy(gone).to(wide.device), 0.0)
        places = (kept.get(name, {}).get(dim, np.arange(size)) for dim, size in enumerate(wide.shape))
        if wide.dim():
            wide[tuple(map(torch.from_numpy, np.ix_(*places)))] = tensor.detach()
        else:
            wide.copy_(tensor)
        result[name] = wide
    return result
