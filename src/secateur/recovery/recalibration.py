"""Recompute batch-norm statistics on given data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from secateur._compat import _BatchNorm, tree_map_only
from secateur.batches import split_batch
from secateur.devices import device_of
from secateur.errors import UsageError
from secateur.graph.capture.obstacles import explain_small_batch
from secateur.graph.capture.program import call_arguments, mode_of
from secateur.untouched import untouched


@dataclass
class _Sums:
    """Count, sum and sum of squares per channel, float64."""

    count: int
    total: Tensor
    square: Tensor


def recalibrate(model: nn.Module, batches: Iterable[Any], *, max_batches: int | None = None) -> int:
    """Recompute the running mean and variance of every batch norm.

    This takes one pass, in which each batch is normalised by its own statistics as in training. The
    statistics over all batches are exact (sums over all values, not an average of averages), with Bessel's
    correction for the variance, as in :class:`torch.nn.BatchNorm2d`. Only batch norms are in training mode
    during the pass: dropout stays off. Modes, momenta, hooks and counters are not changed.

    Args:
        model: the network; only running statistics of its batch norms change.
        batches: inputs, pairs of inputs and targets (which are not used), or mappings of named arguments.
        max_batches: how many batches to use; all by default.

    Returns:
        Number of batch norms whose statistics were recomputed.

    Raises:
        UsageError: there are batch norms but no batches, or a batch has one value for each channel.

    Example:
        >>> norm = nn.BatchNorm1d(1).eval()
        >>> recalibrate(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        1
        >>> norm.running_mean.item(), round(norm.running_var.item(), 4)
        (4.0, 6.6667)
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return 0
    device = device_of(model)
    with untouched(model), mode_of(model, training=False), torch.no_grad(), _measuring(norms) as sums:
        for batch in islice(batches, max_batches):
            inputs, _ = split_batch(batch)
            # Copies, since a forward pass may write to its inputs.
            copied = tree_map_only(Tensor, lambda leaf: leaf.to(device, copy=True), inputs)
            args, kwargs = call_arguments(copied)
            with explain_small_batch(model, "recalibration"):
                model(*args, **kwargs)
    if not sums:
        raise UsageError("there are no batches to measure batch-norm statistics on; pass at least one")
    for norm, found in sums.items():
        _set(norm, found)
    return len(sums)


@contextmanager
def _measuring(norms: list[_BatchNorm]) -> Iterator[dict[_BatchNorm, _Sums]]:
    """Put batch norms into training mode, sum their inputs, and restore everything except the statistics."""
    sums: dict[_BatchNorm, _Sums] = {}

    def see(norm: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        rows = args[0].detach().transpose(0, 1).flatten(1).double()
        found = sums.get(norm) or _Sums(0, rows.new_zeros(len(rows)), rows.new_zeros(len(rows)))
        sums[norm] = _Sums(
            found.count + rows.shape[1], found.total + rows.sum(1), found.square + rows.square().sum(1)
        )

    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    handles = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        yield sums
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum, tracked in before:
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def _set(norm: _BatchNorm, found: _Sums) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = found.total / found.count
    variance = (found.square / found.count - mean.square()).clamp(min=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance * (found.count / max(1, found.count - 1)))
