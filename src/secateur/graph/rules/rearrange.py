"""Propagate labels through operators that exchange channels and positions, or shuffle channels."""

from __future__ import annotations

import math

import numpy as np

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


@rule("aten.pixel_shuffle")
def pixel_shuffle(op: RuleContext) -> Value:
    """Join each run of r² channels into one channel of more pixels."""
    value = op.first()
    return _gathered(op, value, len(value.shape) - 3, int(op.option("upscale_factor")) ** 2)


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(op: RuleContext) -> Value:
    """Spread each channel over r² channels of fewer pixels."""
    value = op.first()
    return _spread(op, value, len(value.shape) - 3, int(op.option("downscale_factor")) ** 2)


@rule("aten.im2col")
def im2col(op: RuleContext) -> Value:
    """Spread each channel over one channel per position in the patch (``unfold``)."""
    value = op.first()
    return _spread(op, value, len(value.shape) - 3, math.prod(op.option("kernel_size")))


@rule("aten.col2im")
def col2im(op: RuleContext) -> Value:
    """Join the channels of patches, which are added up to an image (``fold``)."""
    value = op.first()
    return _gathered(op, value, len(value.shape) - 2, math.prod(op.option("kernel_size")))


def _gathered(op: RuleContext, value: Value, dim: int, run: int) -> Value:
    """Join each run of channels into one: the run goes together."""
    labels = _channels(op, value, dim)
    if labels is not None:
        rows = labels.reshape(-1, run)
        op.join_rows(rows.T)
        labels = np.ascontiguousarray(rows[:, 0])
    return _with_channels(op, value, dim, labels)


def _spread(op: RuleContext, value: Value, dim: int, run: int) -> Value:
    """Spread each channel over a run of channels."""
    labels = _channels(op, value, dim)
    return _with_channels(op, value, dim, None if labels is None else np.repeat(labels, run))


def _channels(op: RuleContext, value: Value, dim: int) -> Labels:
    for space in range(dim + 1, len(value.shape)):
        op.freeze(value.labels[space], f"used as a spatial dimension ({op.place})")
    return value.labels[dim]


def _with_channels(op: RuleContext, value: Value, dim: int, labels: IntArray | None) -> Value:
    rest = (None,) * (len(op.shape) - dim - 1)
    return Value(op.shape, (*value.labels[:dim], labels, *rest))


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(op: RuleContext) -> Value:
    """Interleave groups: the same place goes from every group."""
    value = op.first()
    labels = value.labels[1]
    if labels is None:
        return value
    square = labels.reshape(int(op.option("groups")), -1)
    op.join_rows(square)
    return value.replaced(1, np.ascontiguousarray(square.T).ravel())


@rule("aten.unfold")
def unfold(op: RuleContext) -> Value:
    """Make windows along a dimension of positions; a new dimension comes last.

    Windows of channels that lie side by side, such as heads, go as a whole.
    """
    value = op.first()
    dim, size = op.option("dimension") % len(value.shape), int(op.option("size"))
    labels = value.labels[dim]
    if labels is not None and size == op.option("step") and len(labels) % size == 0:
        rows = labels.reshape(-1, size)
        op.join_rows(rows.T)
        labels = np.ascontiguousarray(rows[:, 0])
    else:
        op.freeze(labels, f"used as a spatial dimension ({op.place})")
        labels = None
    return Value(op.shape, (*value.labels[:dim], labels, *value.labels[dim + 1 :], None))
