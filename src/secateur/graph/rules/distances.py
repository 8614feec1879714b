"""Distances and similarities: contractions over channels that two tensors share."""

from __future__ import annotations

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine
from secateur.graph.site import Site


@rule("aten.cosine_similarity")
def cosine_similarity(site: Site) -> Value:
    """Contract one dimension of two broadcast tensors; both are masked, because of the norms."""
    together = _together(site, "x1", "x2")
    dim = site.option("dim") % len(together.shape)
    _read(site, together, dim)
    return Value(site.shape, (*together.labels[:dim], *together.labels[dim + 1 :]))


@rule("aten.pairwise_distance")
def pairwise_distance(site: Site) -> Value:
    """Reduce the last dimension of a difference; a statistic, since ``eps`` is added per channel."""
    together = _together(site, "x1", "x2")
    last = (None,) if site.option("keepdim") else ()
    result = Value(site.shape, (*together.labels[:-1], *last))
    return result if together.labels[-1] is None else site.statistic(result)


@rule("aten.cdist")
def cdist(site: Site) -> Value:
    """Contract the last dimensions of two tensors, for every pair of rows."""
    one, other = site.value("x1"), site.value("x2")
    for name, value in (("x1", one), ("x2", other)):
        site.claim(value.labels[-1], Role.CONSUMER)
        site.read(name, -1, value.labels[-1])
    site.join(one.labels[-1], other.labels[-1])
    stacks = [Value(item.shape[:-2], item.labels[:-2]) for item in (one, other)]
    lead = combine(site, stacks, site.shape[:-2])
    for labels in (one.labels[-2], other.labels[-2]):
        site.claim(labels, Role.PRODUCER)
    return Value(site.shape, (*lead.labels, one.labels[-2], other.labels[-2]))


def _together(site: Site, *names: str) -> Value:
    """Broadcast two tensors and join their labels."""
    values = [site.value(name) for name in names]
    rank = max(len(value.shape) for value in values)
    padded = [(*(1,) * (rank - len(value.shape)), *value.shape) for value in values]
    return combine(site, values, tuple(max(sizes) for sizes in zip(*padded, strict=True)))


def _read(site: Site, together: Value, dim: int) -> None:
    """Mark the contraction in both tensors, with the dimension counted from the end."""
    place, labels = dim - len(together.shape), together.labels[dim]
    for name in ("x1", "x2"):
        own: Labels = site.value(name).labels[place] if len(site.value(name).shape) >= -place else None
        if labels is not None and own is not None:
            site.claim(own, Role.CONSUMER)
            site.read(name, place, own)
