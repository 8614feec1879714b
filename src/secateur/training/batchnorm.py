"""Batch norm over the whole batch, of which each process has a part.

``torch.nn.SyncBatchNorm`` is for GPUs alone, takes the place of modules, and counts parts of unequal size
as if they were equal. Here the modules stay what they are, on any device; only their forward pass is lent
another one for a block. Statistics, gradients and running statistics are those of one process with the
whole batch.

Shapes: C channels, M values of a channel over all processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import SyncBatchNorm
from torch.nn.functional import batch_norm

from secateur._compat import _BatchNorm
from secateur.ranks import Ranks
from secateur.training.joint import Portion


@contextmanager
def joint_batch_norm(model: nn.Module, portion: Portion, ranks: Ranks) -> Iterator[None]:
    """Lets the batch norms of a network see whole batches for a block.

    Args:
        model: the network; its modules keep their identity.
        portion: of the batch of the current step.
        ranks: the processes of the run.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm)
    ]
    if not ranks.together:
        norms = []
    try:
        for norm in norms:
            norm.forward = partial(_forward, norm, portion, ranks)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _forward(norm: _BatchNorm, portion: Portion, ranks: Ranks, inputs: Tensor) -> Tensor:
    """The forward pass of a batch norm, which looks at the whole batch where it looks at a batch at all."""
    if not (norm.training or norm.running_mean is None):
        return type(norm).forward(norm, inputs)
    norm._check_input_dim(inputs)
    mean, variance, count = _statistics(inputs, portion, ranks)
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        momentum = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(norm.num_batches_tracked)
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean), momentum or 0.0)
            unbiased = variance * (count / max(1.0, count - 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var), momentum or 0.0)
    weight = norm.weight if norm.affine else torch.ones_like(mean)
    bias = norm.bias if norm.affine else torch.zeros_like(mean)
    joint = (mean, variance, count, norm.eps, portion, ranks)
    return _JointBatchNorm.apply(inputs, weight, bias, joint)  # type: ignore[no-any-return, no-untyped-call]


def _statistics(inputs: Tensor, portion: Portion, ranks: Ranks) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance of each channel over the whole batch, shape ``(C,)``, and M."""
    with torch.no_grad():
        dims = [dim for dim in range(inputs.ndim) if dim != 1]
        variance, mean = torch.var_mean(inputs.float(), dims, correction=0)
        count = float(inputs.numel() // inputs.shape[1]) if portion.weight else 0.0
        parts = ranks.stack(torch.stack([mean, variance, torch.full_like(mean, count)]).double())
        means, variances, counts = parts.unbind(1)
        shares = counts / counts.sum(0)
        whole = (shares * means).sum(0)
        spread = (shares * (variances + (means - whole).square())).sum(0)
        return whole.float(), spread.float(), float(counts[:, 0].sum())


class _JointBatchNorm(torch.autograd.Function):
    """Normalises by statistics that depend on the examples of all processes."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, joint: tuple[Any, ...]) -> Tensor:
        mean, variance, _, eps, _, _ = ctx.joint = joint
        ctx.save_for_backward(inputs, weight)
        return batch_norm(inputs, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        inputs, weight = ctx.saved_tensors
        mean, variance, count, eps, portion, ranks = ctx.joint
        # As if the statistics were constants: this also gives the sums over the examples here.
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad.contiguous(), inputs, weight, mean, variance, None, None, False, eps, [True, True, True]
        )
        # What the examples of all processes say about the statistics, each counted by its share in the loss.
        share = portion.weight
        sums = torch.stack([of_bias.float(), of_weight.float()]) * share
        sums = ranks.sum(sums.double() if share else torch.zeros_like(sums).double())
        if not share:
            return torch.zeros_like(direct), torch.zeros_like(weight), torch.zeros_like(weight), None
        deviation = (variance + eps).rsqrt()
        bias_sum, weight_sum = (sums / (count * share)).to(deviation)
        slope = weight.float() * deviation * deviation * weight_sum
        offset = weight.float() * deviation * bias_sum - slope * mean
        shape = [1, -1, *[1] * (inputs.ndim - 2)]
        indirect = inputs * slope.view(shape).to(inputs.dtype) + offset.view(shape).to(inputs.dtype)
        return direct - indirect.to(direct.dtype), of_weight, of_bias, None
