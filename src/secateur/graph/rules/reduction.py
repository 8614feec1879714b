"""Reduce, and compute soft-maxima.

Over positions, channels keep their labels; over channels, the result depends on all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

import torch

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine

REDUCTIONS = """
    mean nanmean sum nansum prod any all count_nonzero logsumexp special_logsumexp amax amin aminmax var std
    var_mean std_mean norm linalg_norm linalg_vector_norm linalg_matrix_norm
"""

_BY_VALUE = {"max", "min", "median", "nanmedian"}
"""Operators that return values and indices."""


@rule(*(f"aten.{name}" for name in REDUCTIONS.split()))
def reduce(op: RuleContext) -> Value | Sequence[Value]:
    """Drop the reduced dimensions; where they held channels, the statistic is over the kept ones."""
    return reduced(op, _dims(op, len(op.first().shape)))


@rule(*(f"aten.{name}" for name in sorted(_BY_VALUE)))
def extreme(op: RuleContext) -> Value | Sequence[Value]:
    """Reduce to an extreme or the median; the index of an extreme is that of a channel."""
    if op.has("other"):  # the larger of two tensors, index by index
        return combine(op, [op.value("self"), op.value("other")], op.shape)
    value = op.first()
    dims = _dims(op, len(value.shape))
    if not is_used(op, 1):
        return reduced(op, dims)
    largest = {"max": True, "min": False}.get(op.operator)
    if largest is None or len(dims) != 1:
        for dim in dims:
            op.freeze(value.labels[dim], f"the index of a channel is used as a value ({op.place})")
        return reduced(op, dims)
    (dim,) = dims
    ranked = op.rank(dim, value.labels[dim], 1, largest=largest)
    kept = (None,) if op.option_or("keepdim", False) else ()
    result = Value(op.shape, (*value.labels[:dim], *kept, *value.labels[dim + 1 :]))
    return [result, replace(result, indices_of=ranked)]


@rule("aten.quantile", "aten.nanquantile")
def quantile(op: RuleContext) -> Value:
    """Reduce to quantiles; several of them make a dimension in front."""
    value = op.first()
    dims = _dims(op, len(value.shape))
    kept = [
        None if dim in dims else own
        for dim, own in enumerate(value.labels)
        if dim not in dims or op.option_or("keepdim", False)
    ]
    result = Value(op.shape, (*[None] * (len(op.shape) - len(kept)), *kept))
    return op.statistic(result) if any(value.labels[dim] is not None for dim in dims) else result


def reduced(op: RuleContext, dims: set[int]) -> Value | Sequence[Value]:
    """Build the result of a reduction of the first argument.

    Args:
        op: the operator.
        dims: the dimensions that are reduced.

    Returns:
        One value, or one for each result; all have the same labels.
    """
    value = op.first()
    keep = bool(op.option_or("keepdim", False))
    labels = tuple(
        None if dim in dims else own for dim, own in enumerate(value.labels) if keep or dim not in dims
    )
    over_channels = any(value.labels[dim] is not None for dim in dims)
    if op.has_several_results:
        op.statistic_along("self", dims)
        return [Value(shape, labels) for shape in op.shapes]
    result = Value(op.shape, labels)
    if over_channels and op.is_part_of_distance:
        for dim in dims:
            op.set_role(value.labels[dim], Role.CONSUMER)
            op.read("self", dim, value.labels[dim])
        return result
    return op.statistic(result) if over_channels else result


@rule(
    "aten.softmax",
    "aten.log_softmax",
    "aten._softmax",
    "aten._log_softmax",
    "aten._safe_softmax",
    "aten.special_softmax",
    "aten.special_log_softmax",
)
def softmax(op: RuleContext) -> Value:
    """Keep labels where the soft-max is over positions; over channels it is a statistic of the kept ones."""
    value = op.first()
    if not value.shape:
        return value
    dim = op.option("dim") % len(value.shape)
    return op.statistic(value) if value.labels[dim] is not None else value


@rule("aten.embedding_renorm")
def embedding_renorm(op: RuleContext) -> Value:
    """Limit the norm of each row of a table, a statistic over its columns."""
    table = op.first()
    op.freeze(table.labels[0], f"rows are picked by an index tensor ({op.place})")
    return op.statistic(table) if table.labels[1] is not None else table


@rule("aten.renorm")
def renorm(op: RuleContext) -> Value:
    """Scale each slice by its norm, a statistic over all other dimensions."""
    value = op.first()
    dim = op.option("dim") % len(value.shape)
    others = [own for place, own in enumerate(value.labels) if place != dim]
    return op.statistic(value) if any(own is not None for own in others) else value


@rule(
    "aten.mse_loss",
    "aten.l1_loss",
    "aten.smooth_l1_loss",
    "aten.huber_loss",
    "aten.soft_margin_loss",
    "aten.binary_cross_entropy",
    "aten.binary_cross_entropy_with_logits",
    "aten.kl_div",
    "aten.dist",
)
def loss(op: RuleContext) -> Value:
    """Join all tensors; a reduced loss is a statistic over all channels."""
    operands = op.tensors()
    together = combine(op, operands, tuple(torch.broadcast_shapes(*(item.shape for item in operands))))
    if op.option_or("reduction", 1) == 0:
        return together
    labelled: list[Labels] = [own for own in together.labels if own is not None]
    return op.statistic(Value.plain(op.shape)) if labelled else Value.plain(op.shape)


@rule("aten.segment_reduce")
def segment_reduce(op: RuleContext) -> Value:
    """Reduce runs of one dimension; their lengths are given by number."""
    value, axis = op.value("data"), op.option("axis")
    op.freeze(value.labels[axis], f"reduced in runs of fixed lengths ({op.place})")
    for name in ("lengths", "indices", "offsets"):
        for labels in op.value(name).labels if op.has(name) else ():
            op.freeze(labels, f"used as lengths of runs ({op.place})")
    return Value(op.shape, (*[None] * (axis + 1), *value.labels[axis + 1 :]))


def is_used(op: RuleContext, place: int) -> bool:
    """Return whether one of several results of an operator is used.

    Args:
        op: the operator.
        place: which result.
    """
    return any(
        user.target is operator.getitem and user.args[1] == place and bool(user.users)
        for user in op.node.users
    )


def _dims(op: RuleContext, count: int) -> set[int]:
    """Return the reduced dimensions; without ``dim``, all of them."""
    dims = op.option_or("dim", None)
    if dims is None or not count:
        return set(range(count))
    listed = dims if isinstance(dims, Sequence) else [dims]
    return {dim % count for dim in listed} or set(range(count))
