"""Operators that read or write positions of one dimension given by an index tensor.

The indexed dimension is frozen. Along all others the tensors are joined index by index. A constant that is
written to adopts the channels; the trial cut checks that its size in the code follows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine
from secateur.graph.site import Site


@rule("aten.gather")
def gather(site: Site) -> Value:
    """Join source and index along all dimensions but the indexed one."""
    value, index = site.value("self"), site.value("index")
    if not value.shape or not index.shape:
        return _refused(site)
    dim = site.option("dim") % len(value.shape)
    site.freeze(value.labels[dim], f"picked by an index tensor ({site.place})")
    labels = [
        index.labels[axis] if axis == dim else _beside(site, axis, "self", "index")
        for axis in range(len(value.shape))
    ]
    return Value(site.shape, tuple(labels))


@rule("aten.take_along_dim")
def take_along_dim(site: Site) -> Value:
    """Join source and index as gather does, with broadcasting."""
    value, index = site.value("self"), site.value("indices")
    if site.option("dim") is None or len(value.shape) != len(index.shape):
        return _refused(site)
    dim = site.option("dim") % len(value.shape)
    site.freeze(value.labels[dim], f"picked by an index tensor ({site.place})")
    shape = (*site.shape[:dim], 1, *site.shape[dim + 1 :])
    sides = [
        Value((*v.shape[:dim], 1, *v.shape[dim + 1 :]), v.replaced(dim, None).labels) for v in (value, index)
    ]
    return Value(site.shape, combine(site, sides, shape).replaced(dim, index.labels[dim]).labels)


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(site: Site) -> Value:
    """Join target, index and source along all dimensions but the indexed one."""
    value, index = site.value("self"), site.value("index")
    if not value.shape or not index.shape:
        return _refused(site)
    dim = site.option("dim") % len(value.shape)
    written = ["src"] if site.has("src") and site.value("src").shape else []
    names = ["self", "index", *written]
    for name in names:
        site.freeze(site.value(name).labels[dim], f"scattered to places of an index tensor ({site.place})")
    labels = [None if axis == dim else _beside(site, axis, *names) for axis in range(len(value.shape))]
    return Value(site.shape, tuple(labels))


@rule("aten.index_add", "aten.index_copy", "aten.index_reduce")
def index_add(site: Site) -> Value:
    """Join target and source along all dimensions but the indexed one."""
    value, source = site.value("self"), site.value("source")
    if not value.shape or len(source.shape) != len(value.shape):
        return _refused(site)
    dim = site.option("dim") % len(value.shape)
    for item in (value.labels[dim], source.labels[dim], *site.value("index").labels):
        site.freeze(item, f"written to places of an index tensor ({site.place})")
    labels = [
        None if axis == dim else _beside(site, axis, "self", "source") for axis in range(len(value.shape))
    ]
    return Value(site.shape, tuple(labels))


@rule("aten.index_fill")
def index_fill(site: Site) -> Value:
    """Freeze the indexed dimension and keep all others."""
    value = site.value("self")
    if not value.shape:
        return value
    dim = site.option("dim") % len(value.shape)
    site.freeze(value.labels[dim], f"written to places of an index tensor ({site.place})")
    return value


@rule("aten.index_put")
def index_put(site: Site) -> Value:
    """Join target and values along dimensions without an index; a full mask is element-wise."""
    value, given = site.value("self"), list(site.option("indices"))
    picked = [place for place, item in enumerate(given) if item is not None]
    if any(_is_mask(given[place]) for place in picked):
        return _masked(site, value, given)
    for dim in picked:
        site.freeze(value.labels[dim], f"picked by an index tensor ({site.place})")
    for item in site.values("indices"):
        for labels in item.labels:
            site.freeze(labels, f"used as an index ({site.place})")
    if not picked or picked != list(range(picked[0], picked[0] + len(picked))):
        return _refused(site)
    kept = [dim for dim in range(len(value.shape)) if dim not in picked]
    written = site.value("values")
    # What is written has the shape of the index tensors in place of the indexed dimensions.
    more = max(len(site.values("indices")[place].shape) for place in picked) - len(picked)
    for dim in kept:
        place = dim - len(value.shape) - (more if dim < picked[0] else 0)
        if -place <= len(written.shape):
            _one_of(site, dim, place)
    result = site.value("self")
    for dim in picked:
        result = result.replaced(dim, None)
    return result


def _is_mask(index: Any) -> bool:
    """Return whether an index is a boolean tensor."""
    value = index.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)


def _one_of(site: Site, dim: int, place: int) -> None:
    """Join one dimension of target and values; values of size one there are broadcast."""
    value, written = site.value("self"), site.value("values")
    if written.shape[place] == value.shape[dim]:
        labels = site.adopt("self", dim, written.labels[place])
        site.join(labels, site.adopt("values", place, labels))
    else:
        site.freeze(written.labels[place], f"one channel is written to all ({site.place})")


def _masked(site: Site, value: Value, given: list[object]) -> Value:
    mask = site.values("indices")[0]
    if len(given) > 1 or mask.shape != value.shape or any(size != 1 for size in site.value("values").shape):
        return _refused(site)
    return combine(site, [value, mask], site.shape)


def _beside(site: Site, axis: int, *names: str) -> Labels:
    """Join one dimension of several tensors of one size; different sizes are frozen."""
    if len({site.value(name).shape[axis] for name in names}) > 1:
        for name in names:
            site.freeze(site.value(name).labels[axis], f"only the first of them are used ({site.place})")
        return None
    known = next((own for name in names if (own := site.value(name).labels[axis]) is not None), None)
    labels = [site.adopt(name, axis, known) for name in names]
    for one in labels[1:]:
        site.join(labels[0], one)
    return None if any(own is None for own in labels) else labels[0]


def _refused(site: Site) -> Value:
    """Freeze all arguments of a form without a rule."""
    for item in site.tensors():
        for labels in item.labels:
            site.freeze(labels, f"indices in a form that is not followed ({site.place})")
    return Value.plain(site.shape)
