"""Linear layers, matrix products and embeddings."""

from __future__ import annotations

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine
from secateur.graph.site import Site


@rule("aten.linear")
def linear(site: Site) -> Value:
    """Contracts the last dimension with weight dimension 1, hands on weight dimension 0."""
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
    """Looks up rows: the columns are the channels, the rows stay."""
    weight, indices = site.value("weight"), site.value("indices")
    site.claim(weight.labels[1], Role.PRODUCER)
    site.freeze(weight.labels[0], f"rows of an embedding ({site.place})")
    site.attribute("embedding_dim", weight.labels[1])
    return Value(site.shape, (*indices.labels, weight.labels[1]))


@rule("aten.matmul", "aten.bmm", "aten.mm")
def matmul(site: Site) -> Value:
    """Contracts the last dimension of the left with the last but one of the right."""
    left, right = site.tensors() if len(site.tensors()) == 2 else [site.first()] * 2
    if len(left.shape) < 2 or len(right.shape) < 2:
        for operand in (left, right):
            for labels in operand.labels:
                site.freeze(labels, f"a product with a vector ({site.place})")
        return Value.plain(site.shape)
    inner_left, inner_right = left.labels[-1], right.labels[-2]
    for labels in (inner_left, inner_right):
        site.claim(labels, Role.CONSUMER)
    for labels in (left.labels[-2], right.labels[-1]):
        site.claim(labels, Role.PRODUCER)
    site.join(inner_left, inner_right)
    site.object(inner_left)
    site.object(inner_right)
    names = [argument for argument in ("self", "input") if site.has(argument)]
    site.read(names[0], -1, inner_left)
    result = _stacked(site, left, right)
    lead = zip(site.shape[:-2], result.labels[:-2], strict=True)
    inner = (
        (left.shape[-2], left.labels[-2]),
        (left.shape[-1], inner_left),
        (right.shape[-1], right.labels[-1]),
    )
    site.work(1, *(size if labels is None else labels for size, labels in (*lead, *inner)))
    return result


def _stacked(site: Site, left: Value, right: Value) -> Value:
    """Leading dimensions meet as in broadcasting."""
    lead = site.shape[:-2]
    stacks = [Value(item.shape[:-2], item.labels[:-2]) for item in (left, right)]
    if len(left.shape) == len(right.shape):
        site.object_unless_alike(left, right, [(dim, dim) for dim in range(len(lead))])
    joined = combine(site, stacks, lead)
    return Value(site.shape, (*joined.labels, left.labels[-2], right.labels[-1]))
