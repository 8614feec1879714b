"""Linear layers, matrix products and embeddings."""

from __future__ import annotations

import torch

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine
from secateur.graph.site import Site


@rule("aten.linear")
def linear(site: Site) -> Value:
    """Contract the last dimension with weight dimension 1, hand on weight dimension 0."""
    value, weight = site.value("input"), site.value("weight")
    incoming, outgoing = value.labels[-1], weight.labels[0]
    site.claim(weight.labels[1], Role.CONSUMER)
    site.claim(outgoing, Role.PRODUCER)
    site.join(incoming, weight.labels[1], f"reads values that are not channels ({site.place})")
    site.read("input", -1, incoming, "weight")
    site.carry("bias", outgoing)
    site.attribute("out_features", outgoing)
    site.attribute("in_features", incoming)
    rows: list[Labels | int] = [
        size if labels is None else labels
        for size, labels in zip(value.shape[:-1], value.labels[:-1], strict=True)
    ]
    site.work(1, *rows, *(weight.labels[dim] for dim in (0, 1)))
    return Value(site.shape, (*value.labels[:-1], outgoing))


@rule("aten.embedding")
def embedding(site: Site) -> Value:
    """Look up rows: the columns are the channels, the rows stay."""
    weight, indices = site.value("weight"), site.value("indices")
    site.claim(weight.labels[1], Role.PRODUCER)
    site.freeze(weight.labels[0], f"rows of an embedding ({site.place})")
    site.attribute("embedding_dim", weight.labels[1])
    return Value(site.shape, (*indices.labels, weight.labels[1]))


@rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(site: Site) -> list[Value]:
    """Reduce looked-up rows: columns are channels, rows are frozen."""
    weight = site.value("weight")
    columns = weight.labels[1]
    site.claim(columns, Role.PRODUCER)
    site.freeze(weight.labels[0], f"rows of an embedding ({site.place})")
    site.attribute("embedding_dim", columns)
    first, *others = site.shapes
    places = [shape == first and site.option("mode") == 2 for shape in others]  # where each maximum was found
    return [
        Value(first, (None, columns)),
        *(
            Value(shape, (None, columns)) if of_channels else Value.plain(shape)
            for shape, of_channels in zip(others, places, strict=True)
        ),
    ]


_FACTORS = {
    "matmul": ("self", "other"),
    "linalg_matmul": ("self", "other"),
    "bmm": ("self", "mat2"),
    "mm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addmv": ("mat", "vec"),
    "_sparse_mm": ("sparse", "dense"),
}
"""Names of the two factors of a product."""


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
def matmul(site: Site) -> Value:
    """Contract the last dimension of the left factor with the last but one of the right."""
    return _product(site, *_FACTORS[site.operator])


@rule("aten.addmm", "aten.baddbmm", "aten.addmv")
def added_product(site: Site) -> Value:
    """Contract two factors and add a bias, as a linear layer with a weight of shape (in, out) does."""
    left, right = _FACTORS[site.operator.removesuffix("_")]
    result = _product(site, left, right, site.operator.startswith("addmm"))
    bias = site.value("self")
    for labels in bias.labels:
        site.claim(labels, Role.CARRIER)
    return combine(site, [result, bias], site.shape)


def _product(site: Site, left_name: str, right_name: str, weighted: bool = False) -> Value:
    """Contract two matrices, batches of matrices, or vectors.

    Args:
        site: the operator.
        left_name: name of the left factor.
        right_name: name of the right factor.
        weighted: whether the right factor is a weight, if it is a parameter.
    """
    left, right = site.value(left_name), site.value(right_name)
    row, column = len(left.shape) == 1, len(right.shape) == 1
    if column and site.is_fixed(left_name, right_name):
        _freeze_all(
            site,
            [left, right],
            f"a scalar computed from whole weights, such as a spectral norm, would change ({site.place})",
        )
        return Value.plain(site.shape)
    if row:
        left = Value((1, *left.shape), (None, *left.labels))
    if column:
        right = Value((*right.shape, 1), (*right.labels, None))
    inner_left, inner_right = left.labels[-1], right.labels[-2]
    for labels in (inner_left, inner_right):
        site.claim(labels, Role.CONSUMER)
    for labels in (left.labels[-2], right.labels[-1]):
        site.claim(labels, Role.PRODUCER)
    site.join(inner_left, inner_right)
    site.object(inner_left)
    site.object(inner_right)
    site.read(left_name, -1, inner_left, right_name if weighted else "")
    if weighted:
        for name, labels in (("nx", inner_left), ("nf", right.labels[-1])):
            site.attribute(name, labels)
    stack = _stacked(site, left, right)
    inner = (
        (left.shape[-2], left.labels[-2]),
        (left.shape[-1], inner_left),
        (right.shape[-1], right.labels[-1]),
    )
    sizes = (*zip(stack.shape, stack.labels, strict=True), *inner)
    site.work(1, *(size if labels is None else labels for size, labels in sizes))
    rows = () if row else (left.labels[-2],)
    columns = () if column else (right.labels[-1],)
    return Value(site.shape, (*stack.labels, *rows, *columns))


def _stacked(site: Site, left: Value, right: Value) -> Value:
    """Leading dimensions meet as in broadcasting."""
    stacks = [Value(item.shape[:-2], item.labels[:-2]) for item in (left, right)]
    lead = tuple(torch.broadcast_shapes(*(item.shape for item in stacks)))
    if len(left.shape) == len(right.shape):
        site.object_unless_alike(left, right, [(dim, dim) for dim in range(len(lead))])
    return combine(site, stacks, lead)


@rule("aten.inner")
def inner(site: Site) -> Value:
    """Contract the last dimensions of two tensors."""
    left, right = site.value("self"), site.value("other")
    if not left.shape or not right.shape:
        return combine(site, [left, right], site.shape)
    return _contracted(site, left, right, [(len(left.shape) - 1, len(right.shape) - 1)])


@rule("aten.tensordot")
def tensordot(site: Site) -> Value:
    """Contract pairs of dimensions of two tensors."""
    left, right = site.value("self"), site.value("other")
    pairs = zip(site.option("dims_self"), site.option("dims_other"), strict=True)
    return _contracted(
        site, left, right, [(one % len(left.shape), other % len(right.shape)) for one, other in pairs]
    )


def _contracted(site: Site, left: Value, right: Value, pairs: list[tuple[int, int]]) -> Value:
    """Contract pairs of dimensions and keep the labels of all others."""
    for one, other in pairs:
        for labels in (left.labels[one], right.labels[other]):
            site.claim(labels, Role.CONSUMER)
        site.join(left.labels[one], right.labels[other])
        site.read("self", one, left.labels[one])
    rows = _others(left, [one for one, _ in pairs])
    columns = _others(right, [other for _, other in pairs])
    for _, labels in (*rows, *columns):
        site.claim(labels, Role.PRODUCER)
    inner = [(left.shape[one], left.labels[one]) for one, _ in pairs]
    site.work(1, *(size if labels is None else labels for size, labels in (*rows, *columns, *inner)))
    return Value(site.shape, tuple(labels for _, labels in (*rows, *columns)))


def _others(value: Value, dims: list[int]) -> list[tuple[int, Labels]]:
    """Return sizes and labels of all dimensions but some."""
    sizes = zip(value.shape, value.labels, strict=True)
    return [item for dim, item in enumerate(sizes) if dim not in dims]


@rule("aten.outer", "aten.ger")
def outer(site: Site) -> Value:
    """Keep the labels of both vectors."""
    labels = (site.value("self").labels[0], site.value("vec2").labels[0])
    for own in labels:
        site.claim(own, Role.PRODUCER)
    return Value(site.shape, labels)


@rule("aten.bilinear")
def bilinear(site: Site) -> Value:
    """Contract two inputs with weight dimensions 1 and 2; weight dimension 0 gives the result."""
    one, other, weight = (site.value(name) for name in ("input1", "input2", "weight"))
    outgoing = weight.labels[0]
    site.claim(outgoing, Role.PRODUCER)
    for dim, (name, value) in enumerate((("input1", one), ("input2", other)), start=1):
        site.claim(weight.labels[dim], Role.CONSUMER)
        site.join(value.labels[-1], weight.labels[dim], f"reads values that are not channels ({site.place})")
        site.read(name, -1, value.labels[-1])
        site.attribute(f"in{dim}_features", value.labels[-1])
    site.carry("bias", outgoing)
    site.attribute("out_features", outgoing)
    lead = combine(site, [Value(item.shape[:-1], item.labels[:-1]) for item in (one, other)], site.shape[:-1])
    sizes = (*zip(lead.shape, lead.labels, strict=True), *zip(weight.shape, weight.labels, strict=True))
    site.work(1, *(size if labels is None else labels for size, labels in sizes))
    return Value(site.shape, (*lead.labels, outgoing))


def _freeze_all(site: Site, values: list[Value], reason: str) -> None:
    for value in values:
        for labels in value.labels:
            site.freeze(labels, reason)
