"""Reductions and soft-maxima: over positions they hand channels on, over channels they read them all."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.labels import Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule(
    "aten.mean",
    "aten.sum",
    "aten.amax",
    "aten.amin",
    "aten.var",
    "aten.std",
    "aten.linalg_vector_norm",
    "aten.norm",
)
def reduce(site: Site) -> Value | Sequence[Value]:
    """Reduced dimensions vanish; where they held channels, the statistic is over the kept ones."""
    value = site.first()
    reduced = _dims(site, len(value.shape))
    keep = bool(site.option("keepdim")) if "keepdim" in _names(site) else False
    labels = [
        None if dim in reduced else value.labels[dim]
        for dim in range(len(value.shape))
        if keep or dim not in reduced
    ]
    result = Value(site.shape, tuple(labels))
    if any(value.labels[dim] is not None for dim in reduced):
        return site.statistic(result)
    return result


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax")
def softmax(site: Site) -> Value:
    """Over positions element-wise as far as channels go; over channels a statistic of the kept ones."""
    value = site.first()
    dim = site.option("dim") % len(value.shape)
    return site.statistic(value) if value.labels[dim] is not None else value


def _names(site: Site) -> list[str]:
    return [argument.name for argument in site.node.target._schema.arguments]  # type: ignore[union-attr]


def _dims(site: Site, count: int) -> set[int]:
    """The dimensions that are reduced: all of them where none is named."""
    if "dim" not in _names(site) or not site.has("dim"):
        return set(range(count))
    dims = site.option("dim")
    listed = dims if isinstance(dims, Sequence) else [dims]
    return {dim % count for dim in listed} or set(range(count))
