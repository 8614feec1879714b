"""Propagate labels through operators that pick, sort or repeat contents by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


@rule("aten.index")
def index(op: RuleContext) -> Value:
    """Freeze indexed dimensions; what is picked takes the place of the first of them.

    Indices that are numbers in the code fix what lies between them and the end that they count from.
    """
    value = op.first()
    picked = indexed_dims(op)
    given = [op.fixed_indices(item) for item in op.option("indices") if item is not None]
    indices = [
        value
        for value, item in zip(op.values("indices"), op.option("indices"), strict=True)
        if item is not None
    ]
    for position, dim in enumerate(picked):
        labels, fixed = value.labels[dim], given[position] if len(given) == len(picked) else None
        reason = f"picked by an index tensor ({op.place})"
        if labels is not None and fixed is not None:
            for part in _as_far_as(labels, fixed):
                op.freeze(part, reason)
        elif len(given) == len(picked):
            op.pick(labels, indices[position], reason)
        else:
            op.freeze(labels, reason)
    for item in op.values("indices"):
        for labels in item.labels:
            op.freeze(labels, f"used as an index ({op.place})")
    new = len(op.shape) - (len(value.shape) - len(picked))
    # Index tensors that are not neighbours put their result in front.
    neighbours = picked == list(range(picked[0], picked[0] + len(picked)))
    start = picked[0] if neighbours else 0
    kept = [labels for dim, labels in enumerate(value.labels) if dim not in picked]
    return Value(op.shape, (*kept[:start], *(None,) * new, *kept[start:]))


def _as_far_as(labels: IntArray, indices: Sequence[int]) -> list[IntArray]:
    """Select what lies before some indices, or behind them if they count from the end; they are included."""
    first = max((index + 1 for index in indices if index >= 0), default=0)
    last = max((-index for index in indices if index < 0), default=0)
    return [labels[:first], labels[len(labels) - last :]]


def indexed_dims(op: RuleContext) -> list[int]:
    """List the dimensions that index tensors pick from; a mask picks from as many as it has."""
    picked: list[int] = []
    place = 0
    for item, index in zip(op.option("indices"), op.values("indices"), strict=True):
        count = len(index.shape) if is_mask(item) else 1
        if item is not None:
            picked += range(place, place + count)
        place += count
    return picked


def is_mask(index: Any) -> bool:
    """Return whether an index is a tensor of truth values."""
    value = index.meta.get("val") if isinstance(index, Node) else None
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)


@rule("aten.index_select")
def index_select(op: RuleContext) -> Value:
    """Pick from one dimension by an index tensor: it is fixed, unless that holds indices of channels."""
    value = op.first()
    dim = op.option("dim") % len(value.shape)
    op.pick(value.labels[dim], op.value("index"), f"picked by an index tensor ({op.place})")
    return Value(op.shape, (*value.labels[:dim], None, *value.labels[dim + 1 :]))


@rule("aten.repeat", "aten.tile")
def repeat(op: RuleContext) -> Value:
    """Repeat labels as the contents are repeated."""
    value = op.first()
    times = list(op.option("repeats" if op.operator == "repeat" else "dims"))
    times = [1] * (len(op.shape) - len(times)) + times
    own: list[Labels] = [*[None] * (len(op.shape) - len(value.shape)), *value.labels]
    labels: list[Labels] = []
    made: list[Labels] = []
    for place, (item, count) in enumerate(zip(own, times, strict=True)):
        known = len(op.sources) == len(times)
        of_channels = known and item is not None and len(item) > 1 and op.counts_channels(place)
        single = known and count == op.shape[place]
        made.append(op.labels_of_size(place, count) if single or of_channels else None)
        if item is not None and of_channels and made[-1] is not None:  # such as filters for each channel
            op.freeze(item, f"all of these are repeated for each channel ({op.place})")
            labels.append(np.repeat(made[-1], len(item)))
        elif made[-1] is None and (item is None or len(item) > 1 or count == 1):
            labels.append(item if item is None else np.tile(item, count))
        else:  # as often as there are channels, or as there are examples
            op.freeze(item, f"one channel is repeated ({op.place})")
            labels.append(made[-1])
    if len(op.sources) == len(times):
        op.constrain_sizes(made, times)
    return Value(op.shape, tuple(labels))


@rule("aten.repeat_interleave")
def repeat_interleave(op: RuleContext) -> Value:
    """Repeat each index in place, a fixed or an unknown number of times.

    What is no channel is repeated as often as a size says that may follow channels.
    """
    value, times = op.first(), op.option("repeats")
    labels = list(value.labels)
    if op.option("dim") is None or isinstance(times, Node):
        for own in labels:
            op.freeze(own, f"repeated unevenly ({op.place})")
        return Value.plain(op.shape)
    dim = op.option("dim") % len(value.shape)
    own, made = labels[dim], None
    if own is None:
        made = op.labels_of_size(0, int(times))
        labels[dim] = None if made is None else np.tile(made, value.shape[dim])
    else:
        labels[dim] = np.repeat(own, int(times))
    op.constrain_sizes([made], [int(times)])
    return Value(op.shape, tuple(labels))


@rule(
    "aten.topk",
    "aten.sort",
    "aten.msort",
    "aten.argsort",
    "aten.argmax",
    "aten.argmin",
    "aten.kthvalue",
    "aten.mode",
)
def ranked(op: RuleContext) -> Value | Sequence[Value]:
    """Rank along one dimension: where a number of channels is picked, the result holds their indices.

    Other operators fix the channels of the ranked dimension, since their order becomes that of the result.
    """
    value = op.first()
    dim = op.option_or("dim", 0 if op.operator == "msort" else None)
    if dim is None or not value.shape:
        return op.refuse("ranked by value")
    dim %= len(value.shape)
    picked: Labels = None
    if op.operator in ("topk", "argmax", "argmin"):
        smallest = op.operator == "argmin" or op.option_or("largest", True) is False
        picked = op.rank(dim, value.labels[dim], int(op.option_or("k", 1)), largest=not smallest)
    labels: list[Labels] = []
    for axis, own in enumerate(value.labels):
        if axis != dim:
            labels.append(own)
        elif picked is None:
            op.freeze(own, f"ranked by value ({op.place})")
    if len(op.shape) == len(value.shape):
        labels.insert(dim, None)
    result = Value(op.shape, tuple(labels))
    found = replace(result, indices_of=picked)
    return [result, found] if op.has_several_results else found


@rule("aten.histc")
def histogram(op: RuleContext) -> Value:
    """Count how often each number occurs: once for each channel if the numbers are indices of channels."""
    value = op.first()
    for own in value.labels:
        op.freeze(own, f"values are counted across channels ({op.place})")
    labels, bins = value.indices_of, op.shape[0]
    if labels is not None and (len(labels), op.option("min"), op.option("max")) != (bins, 0, bins - 1):
        op.freeze(labels, f"counted in other bins than one for each ({op.place})")
        labels = None
    op.constrain_sizes([labels], op.shape)
    return Value(op.shape, (labels,))


@rule("aten.cumsum")
def running_sum(op: RuleContext) -> Value:
    """Add up values in order; removed channels add nothing."""
    value = op.first()
    if value.shape:
        dim = op.option("dim") % len(value.shape)
        op.read("self", dim, value.labels[dim])
    return value


@rule("aten.cumprod", "aten.logcumsumexp")
def running_statistic(op: RuleContext) -> Value:
    """Accumulate values in order; over channels, those that are kept."""
    value = op.first()
    dim = op.option("dim") % len(value.shape) if value.shape else 0
    return op.statistic(value) if value.shape and value.labels[dim] is not None else value


@rule(
    "aten.cummax",
    "aten.cummin",
)
def running(op: RuleContext) -> Value | Sequence[Value]:
    """Freeze the dimension along which values are accumulated in order."""
    value = op.first()
    if value.shape:
        dim = op.option("dim") % len(value.shape)
        op.freeze(value.labels[dim], f"added up in order ({op.place})")
        value = value.replaced(dim, None)
    return [value] * len(op.shapes) if op.has_several_results else value


@rule("aten.diff")
def difference(op: RuleContext) -> Value:
    """Freeze the dimension along which neighbours are subtracted."""
    value = op.first()
    dim = op.option("dim") % len(value.shape)
    reason = f"subtracted from its neighbour ({op.place})"
    op.freeze(value.labels[dim], reason)
    labels = list(value.replaced(dim, None).labels)
    for name in ("prepend", "append"):
        if op.has(name):
            end = op.value(name)
            op.freeze(end.labels[dim], reason)
            others = end.replaced(dim, None).labels
            labels = [op.join(one, other) for one, other in zip(labels, others, strict=True)]
    return Value(op.shape, tuple(labels))
