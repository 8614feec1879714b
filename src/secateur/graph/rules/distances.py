"""Propagate labels through distances and similarities, which contract over shared channels."""

from __future__ import annotations

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine

_BOTH = ("x1", "x2")
"""The names of the two tensors, in every operator that has two."""


@rule("aten.cosine_similarity")
def cosine_similarity(op: RuleContext) -> Value:
    """Contract one dimension of two broadcast tensors; both are masked, because of the norms."""
    together = _together(op)
    dim = op.option("dim") % len(together.shape)
    _read(op, together, dim)
    return Value(op.shape, (*together.labels[:dim], *together.labels[dim + 1 :]))


@rule("aten.pairwise_distance")
def pairwise_distance(op: RuleContext) -> Value:
    """Reduce the last dimension of a difference; a statistic, since ``eps`` is added per channel."""
    together = _together(op)
    last = (None,) if op.option("keepdim") else ()
    result = Value(op.shape, (*together.labels[:-1], *last))
    return result if together.labels[-1] is None else op.statistic(result)


@rule("aten.cdist")
def cdist(op: RuleContext) -> Value:
    """Contract the last dimensions of two tensors, for every pair of rows."""
    one, other = map(op.value, _BOTH)
    for name, value in zip(_BOTH, (one, other), strict=True):
        op.set_role(value.labels[-1], Role.CONSUMER)
        op.read(name, -1, value.labels[-1])
    op.join(one.labels[-1], other.labels[-1])
    stacks = [Value(item.shape[:-2], item.labels[:-2]) for item in (one, other)]
    lead = combine(op, stacks, op.shape[:-2])
    for labels in (one.labels[-2], other.labels[-2]):
        op.set_role(labels, Role.PRODUCER)
    return Value(op.shape, (*lead.labels, one.labels[-2], other.labels[-2]))


@rule("aten.pdist")
def pdist(op: RuleContext) -> Value:
    """Contract the columns of a matrix, for every pair of its rows."""
    rows, columns = op.first().labels
    op.freeze(rows, f"every row meets all others ({op.place})")
    op.set_role(columns, Role.CONSUMER)
    op.read("self", 1, columns)
    return Value.plain(op.shape)


def _together(op: RuleContext) -> Value:
    """Broadcast two tensors and join their labels."""
    values = [op.value(name) for name in _BOTH]
    rank = max(len(value.shape) for value in values)
    padded = [(*(1,) * (rank - len(value.shape)), *value.shape) for value in values]
    return combine(op, values, tuple(max(sizes) for sizes in zip(*padded, strict=True)))


def _read(op: RuleContext, together: Value, dim: int) -> None:
    """Mark the contraction in both tensors, with the dimension counted from the end."""
    place, labels = dim - len(together.shape), together.labels[dim]
    for name in _BOTH:
        own: Labels = op.value(name).labels[place] if len(op.value(name).shape) >= -place else None
        if labels is not None and own is not None:
            op.set_role(own, Role.CONSUMER)
            op.read(name, place, own)
