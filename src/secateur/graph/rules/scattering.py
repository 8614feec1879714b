"""Propagate labels through operators that read or write positions given by an index tensor.

The indexed dimension is frozen, unless the indices are those of its channels. Along all others the tensors
are joined index by index. A constant that is written to adopts the channels; the trial cut checks that its
size in the code follows.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from secateur.graph.capture.nodes import operator_name
from secateur.graph.capture.operators import COPIES
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine
from secateur.graph.rules.indexing import indexed_dims, is_mask

_UNSUPPORTED = "indices in a form that is not supported"


@rule("aten.gather")
def gather(op: RuleContext) -> Value | list[Value]:
    """Join source and index along all dimensions but the indexed one."""
    value, index = op.value("self"), op.value("index")
    if not value.shape or not index.shape:
        return op.refuse(_UNSUPPORTED)
    dim = op.option("dim") % len(value.shape)
    op.pick(value.labels[dim], index, f"picked by an index tensor ({op.place})")
    labels = [
        index.labels[axis] if axis == dim else _beside(op, axis, "self", "index")
        for axis in range(len(value.shape))
    ]
    return Value(op.shape, tuple(labels))


@rule("aten.take_along_dim")
def take_along_dim(op: RuleContext) -> Value | list[Value]:
    """Join source and index as gather does, with broadcasting."""
    value, index = op.value("self"), op.value("indices")
    if op.option("dim") is None or len(value.shape) != len(index.shape):
        return op.refuse(_UNSUPPORTED)
    dim = op.option("dim") % len(value.shape)
    op.freeze(value.labels[dim], f"picked by an index tensor ({op.place})")
    shape = (*op.shape[:dim], 1, *op.shape[dim + 1 :])
    sides = [
        Value((*v.shape[:dim], 1, *v.shape[dim + 1 :]), v.replaced(dim, None).labels) for v in (value, index)
    ]
    return Value(op.shape, combine(op, sides, shape).replaced(dim, index.labels[dim]).labels)


@rule("aten.masked_scatter")
def masked_scatter(op: RuleContext) -> Value | list[Value]:
    """Join the rows that are filled with those of the source, where a mask names whole rows.

    Networks for images and text put the features of an image into the places of a word so. Numbers are taken
    from the source one after the other, so a mask that names single channels lets none be removed.
    """
    value, source = op.value("self"), op.value("source")
    reason = f"elements are selected across channels, not within them ({op.place})"
    rows = value.shape[-1:] == source.shape[-1:] == op.shape[-1:] and _is_of_rows(op.node.args[1])
    if not rows or not value.shape:
        return op.refuse(reason)
    for one in (value, source):
        for labels in one.labels[:-1]:
            op.freeze(labels, reason)
    return Value(op.shape, (*(None,) * (len(op.shape) - 1), op.join(value.labels[-1], source.labels[-1])))


def _is_of_rows(mask: Any) -> bool:
    """Return whether a mask is the same along its last dimension: one number, repeated or broadcast."""
    while isinstance(mask, Node) and tuple(mask.meta["val"].shape)[-1:] != (1,):
        if operator_name(mask) not in COPIES | {"expand", "expand_as", "broadcast_to"}:
            return False
        mask = mask.args[0]
    return isinstance(mask, Node)


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(op: RuleContext) -> Value | list[Value]:
    """Join target, index and source along all dimensions but the indexed one."""
    value, index = op.value("self"), op.value("index")
    if not value.shape or not index.shape:
        return op.refuse(_UNSUPPORTED)
    dim = op.option("dim") % len(value.shape)
    written = ["src"] if op.has("src") and op.value("src").shape else []
    names = ["self", "index", *written]
    reason = f"scattered to places of an index tensor ({op.place})"
    for name in names[1:]:
        op.freeze(op.value(name).labels[dim], reason)
    op.pick(op.adopt("self", dim, index.indices_of), index, reason)
    picked = None if index.indices_of is None else op.value("self").labels[dim]
    labels = [picked if axis == dim else _beside(op, axis, *names) for axis in range(len(value.shape))]
    return Value(op.shape, tuple(labels))


@rule("aten.index_add", "aten.index_copy", "aten.index_reduce")
def index_add(op: RuleContext) -> Value | list[Value]:
    """Join target and source along all dimensions but the indexed one."""
    value, source = op.value("self"), op.value("source")
    if not value.shape or len(source.shape) != len(value.shape):
        return op.refuse(_UNSUPPORTED)
    dim = op.option("dim") % len(value.shape)
    index, reason = op.value("index"), f"written to places of an index tensor ({op.place})"
    for item in (source.labels[dim], *index.labels):
        op.freeze(item, reason)
    op.pick(op.adopt("self", dim, index.indices_of), index, reason)
    picked = None if index.indices_of is None else op.value("self").labels[dim]
    labels = [
        picked if axis == dim else _beside(op, axis, "self", "source") for axis in range(len(value.shape))
    ]
    return Value(op.shape, tuple(labels))


@rule("aten.index_fill")
def index_fill(op: RuleContext) -> Value:
    """Freeze the indexed dimension and keep all others."""
    value = op.value("self")
    if not value.shape:
        return value
    dim = op.option("dim") % len(value.shape)
    op.freeze(value.labels[dim], f"written to places of an index tensor ({op.place})")
    return value


@rule("aten.select_scatter", "aten.slice_scatter")
def replace_part(op: RuleContext) -> Value:
    """Join target and source in all dimensions except the one in which an index or a range is replaced."""
    value, source = op.value("self"), op.value("src")
    dim, single = op.option("dim") % len(value.shape), len(source.shape) < len(value.shape)
    for labels in (value.labels[dim], None if single else source.labels[dim]):
        op.freeze(labels, f"a part is replaced at fixed places ({op.place})")
    for axis in (axis for axis in range(len(value.shape)) if axis != dim):
        place = axis - 1 if single and axis > dim else axis
        labels = op.adopt("self", axis, source.labels[place])
        op.join(labels, op.adopt("src", place, labels))
    return op.value("self").replaced(dim, None)


@rule("aten.index_put")
def index_put(op: RuleContext) -> Value | list[Value]:
    """Join target and values along dimensions without an index; a full mask is element-wise."""
    value, written = op.value("self"), op.value("values")
    masks = [place for place, item in enumerate(op.option("indices")) if is_mask(item)]
    if masks and op.values("indices")[0].shape == value.shape and all(size == 1 for size in written.shape):
        return combine(op, [value, op.values("indices")[0]], op.shape)
    picked = indexed_dims(op)
    for dim in picked:
        op.freeze(value.labels[dim], f"picked by an index tensor ({op.place})")
    for item in op.values("indices"):
        for labels in item.labels:
            op.freeze(labels, f"used as an index ({op.place})")
    if not picked or picked != list(range(picked[0], picked[0] + len(picked))):
        return op.refuse(_UNSUPPORTED)
    # What is written has the shape of what is picked in place of the indexed dimensions; a mask picks a list.
    sizes = [1 if place in masks else len(item.shape) for place, item in enumerate(op.values("indices"))]
    more = max(sizes) - len(picked)
    for dim in (dim for dim in range(len(value.shape)) if dim not in picked):
        place = dim - len(value.shape) - (more if dim < picked[0] else 0)
        if -place <= len(written.shape):
            _one_of(op, dim, place)
    result = op.value("self")
    for dim in picked:
        result = result.replaced(dim, None)
    return result


def _one_of(op: RuleContext, dim: int, place: int) -> None:
    """Join one dimension of target and values; values of size one there are broadcast."""
    value, written = op.value("self"), op.value("values")
    if written.shape[place] == value.shape[dim]:
        labels = op.adopt("self", dim, written.labels[place])
        op.join(labels, op.adopt("values", place, labels))
    else:
        op.freeze(written.labels[place], f"one channel is written to all ({op.place})")


def _beside(op: RuleContext, axis: int, *names: str) -> Labels:
    """Join one dimension of several tensors of one size; different sizes are frozen."""
    if len({op.value(name).shape[axis] for name in names}) > 1:
        for name in names:
            op.freeze(op.value(name).labels[axis], f"only the first of them are used ({op.place})")
        return None
    known = next((own for name in names if (own := op.value(name).labels[axis]) is not None), None)
    labels = [op.adopt(name, axis, known) for name in names]
    for one in labels[1:]:
        op.join(labels[0], one)
    return None if any(own is None for own in labels) else labels[0]
