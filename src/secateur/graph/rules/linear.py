"""Propagate labels through linear layers, matrix products and embeddings."""

from __future__ import annotations

import torch

from secateur.graph.capture.operators import PRODUCTS
from secateur.graph.groups import Role
from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine


@rule("aten.linear")
def linear(op: RuleContext) -> Value:
    """Contract the last dimension with weight dimension 1, return weight dimension 0."""
    value, weight = op.value("input"), op.value("weight")
    incoming, outgoing = value.labels[-1], weight.labels[0]
    op.set_role(weight.labels[1], Role.CONSUMER)
    op.set_role(outgoing, Role.PRODUCER)
    op.join(incoming, weight.labels[1], op.why_no_channels("weight"))
    op.read("input", -1, incoming, "weight")
    op.tie_parameter("bias", outgoing)
    op.attribute("out_features", outgoing)
    op.attribute("in_features", incoming)
    op.add_macs(1, *value.extents[:-1], *weight.extents)
    return Value(op.shape, (*value.labels[:-1], outgoing))


@rule("aten.embedding")
def embedding(op: RuleContext) -> Value:
    """Look up rows: the columns are the channels; the rows stay, unless the network itself chooses them."""
    weight, indices = op.value("weight"), op.value("indices")
    op.set_role(weight.labels[1], Role.PRODUCER)
    op.pick(weight.labels[0], indices, f"rows of an embedding ({op.place})")
    op.attribute("embedding_dim", weight.labels[1])
    return Value(op.shape, (*indices.labels, weight.labels[1]))


@rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(op: RuleContext) -> list[Value]:
    """Reduce looked-up rows: columns are channels, rows are frozen."""
    weight = op.value("weight")
    columns = weight.labels[1]
    op.set_role(columns, Role.PRODUCER)
    op.freeze(weight.labels[0], f"rows of an embedding ({op.place})")
    op.attribute("embedding_dim", columns)
    first, *others = op.shapes
    places = [shape == first and op.option("mode") == 2 for shape in others]  # where each maximum was found
    return [
        Value(first, (None, columns)),
        *(
            Value(shape, (None, columns)) if of_channels else Value.plain(shape)
            for shape, of_channels in zip(others, places, strict=True)
        ),
    ]


@rule(
    "aten.matmul",
    "aten.linalg_matmul",
    "aten.bmm",
    "aten.mm",
    "aten.mv",
    "aten.dot",
    "aten.vdot",
    "aten._sparse_mm",
)
def matmul(op: RuleContext) -> Value:
    """Contract the last dimension of the left factor with the last but one of the right."""
    return _product(op, *PRODUCTS[op.operator])


@rule("aten.addmm", "aten.baddbmm", "aten.addmv")
def added_product(op: RuleContext) -> Value:
    """Contract two factors and add a bias, as a linear layer with a weight of shape (in, out) does."""
    left, right = PRODUCTS[op.operator.removesuffix("_")]
    return _with_bias(op, _product(op, left, right, op.operator.startswith("addmm")))


@rule("aten.addbmm")
def added_sum_of_products(op: RuleContext) -> Value:
    """Contract pairs of matrices, add up the products and add a bias."""
    result = _contracted(op, *PRODUCTS["addbmm"], [(0, 0), (2, 1)])
    return _with_bias(op, result)


def _with_bias(op: RuleContext, result: Value) -> Value:
    """Add the first argument, which carries numbers for the channels, to a product."""
    bias = op.first()
    for labels in bias.labels:
        op.set_role(labels, Role.CARRIER)
    return combine(op, [result, bias], op.shape)


def _product(op: RuleContext, left_name: str, right_name: str, weighted: bool = False) -> Value:
    """Contract two matrices, batches of matrices, or vectors; a ``weighted`` right factor may be a weight."""
    left, right = op.value(left_name), op.value(right_name)
    row, column = len(left.shape) == 1, len(right.shape) == 1
    if column and op.is_fixed(left_name, right_name):
        op.freeze_all("a scalar computed from whole weights, such as a spectral norm, would change")
        return Value.plain(op.shape)
    if row:
        left = Value((1, *left.shape), (None, *left.labels))
    if column:
        right = Value((*right.shape, 1), (*right.labels, None))
    depth = min(len(left.shape), len(right.shape)) - 2
    lengths = len(left.shape), len(right.shape)
    shared = [(lengths[0] - dim, lengths[1] - dim) for dim in range(3, depth + 3)]
    op.record_product(left, right, shared, [(lengths[0] - 1, lengths[1] - 2)])
    inner_left, inner_right = left.labels[-1], right.labels[-2]
    if op.is_fixed(left_name, right_name):
        # A weight of low rank: its left factor writes what the right one reads.
        op.set_role(inner_left, Role.PRODUCER)
    for labels in (inner_left, inner_right):
        op.set_role(labels, Role.CONSUMER)
    for labels in (left.labels[-2], right.labels[-1]):
        op.set_role(labels, Role.PRODUCER)
    op.join(inner_left, inner_right)
    op.reject_axis(inner_left)
    op.reject_axis(inner_right)
    op.read(left_name, -1, inner_left, right_name if weighted else "")
    if weighted:
        for name, labels in (("nx", inner_left), ("nf", right.labels[-1])):
            op.attribute(name, labels)
    stack = _stacked(op, left, right)
    op.add_macs(1, *stack.extents, *left.extents[-2:], right.extents[-1])
    rows = () if row else (left.labels[-2],)
    columns = () if column else (right.labels[-1],)
    return Value(op.shape, (*stack.labels, *rows, *columns))


def _stacked(op: RuleContext, left: Value, right: Value) -> Value:
    """Join leading dimensions as in broadcasting."""
    stacks = [Value(item.shape[:-2], item.labels[:-2]) for item in (left, right)]
    lead = tuple(torch.broadcast_shapes(*(item.shape for item in stacks)))
    if len(left.shape) == len(right.shape):
        op.reject_axis_mismatch(left, right, [(dim, dim) for dim in range(len(lead))])
    return combine(op, stacks, lead)


@rule("aten.inner")
def inner(op: RuleContext) -> Value:
    """Contract the last dimensions of two tensors."""
    left, right = op.value("self"), op.value("other")
    if not left.shape or not right.shape:
        return combine(op, [left, right], op.shape)
    return _contracted(op, "self", "other", [(len(left.shape) - 1, len(right.shape) - 1)])


@rule("aten.tensordot")
def tensordot(op: RuleContext) -> Value:
    """Contract pairs of dimensions of two tensors."""
    left, right = op.value("self"), op.value("other")
    pairs = zip(op.option("dims_self"), op.option("dims_other"), strict=True)
    dims = [(one % len(left.shape), other % len(right.shape)) for one, other in pairs]
    return _contracted(op, "self", "other", dims)


def _contracted(op: RuleContext, left_name: str, right_name: str, pairs: list[tuple[int, int]]) -> Value:
    """Contract pairs of dimensions (left, right), counted from the front; keep the labels of all others."""
    left, right = op.value(left_name), op.value(right_name)
    for one, other in pairs:
        for labels in (left.labels[one], right.labels[other]):
            op.set_role(labels, Role.CONSUMER)
        op.join(left.labels[one], right.labels[other])
        op.read(left_name, one, left.labels[one])
    contracted = [{one for one, _ in pairs}, {other for _, other in pairs}]
    kept = [
        labels
        for value, dims in zip((left, right), contracted, strict=True)
        for dim, labels in enumerate(value.labels)
        if dim not in dims
    ]
    for labels in kept:
        op.set_role(labels, Role.PRODUCER)
    result = Value(op.shape, tuple(kept))
    op.add_macs(1, *result.extents, *(left.extents[one] for one, _ in pairs))
    return result


@rule("aten.outer", "aten.ger", "aten.addr")
def outer(op: RuleContext) -> Value:
    """Keep the labels of both vectors; add a bias, if there is one."""
    added = op.operator.startswith("addr")
    labels = (op.value("vec1" if added else "self").labels[0], op.value("vec2").labels[0])
    for own in labels:
        op.set_role(own, Role.PRODUCER)
    result = Value(op.shape, labels)
    return _with_bias(op, result) if added else result


@rule("aten.bilinear")
def bilinear(op: RuleContext) -> Value:
    """Contract two inputs with weight dimensions 1 and 2; weight dimension 0 gives the result."""
    one, other, weight = (op.value(name) for name in ("input1", "input2", "weight"))
    outgoing = weight.labels[0]
    op.set_role(outgoing, Role.PRODUCER)
    for dim, (name, value) in enumerate((("input1", one), ("input2", other)), start=1):
        op.set_role(weight.labels[dim], Role.CONSUMER)
        op.join(value.labels[-1], weight.labels[dim], f"reads values that are not channels ({op.place})")
        op.read(name, -1, value.labels[-1])
        op.attribute(f"in{dim}_features", value.labels[-1])
    op.tie_parameter("bias", outgoing)
    op.attribute("out_features", outgoing)
    lead = combine(op, [Value(item.shape[:-1], item.labels[:-1]) for item in (one, other)], op.shape[:-1])
    op.add_macs(1, *lead.extents, *weight.extents)
    return Value(op.shape, (*lead.labels, outgoing))
