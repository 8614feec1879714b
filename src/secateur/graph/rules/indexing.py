"""Operators that pick, sort or repeat contents by place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.fx import Node

from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule("aten.index")
def index(site: Site) -> Value:
    """Indexed dimensions are fixed; what is picked takes the place of the first of them."""
    value, given = site.first(), list(site.option("indices"))
    picked = [dim for dim, item in enumerate(given) if item is not None]
    for dim in picked:
        site.freeze(value.labels[dim], f"picked by an index tensor ({site.place})")
    new = len(site.shape) - (len(value.shape) - len(picked))
    # Index tensors that are not neighbours put their result in front.
    neighbours = picked == list(range(picked[0], picked[0] + len(picked)))
    start = picked[0] if neighbours else 0
    kept = [labels for dim, labels in enumerate(value.labels) if dim not in picked]
    return Value(site.shape, (*kept[:start], *(None,) * new, *kept[start:]))


@rule("aten.index_select")
def index_select(site: Site) -> Value:
    """One dimension is picked from by an index tensor: it is fixed."""
    value = site.first()
    dim = site.option("dim") % len(value.shape)
    site.freeze(value.labels[dim], f"picked by an index tensor ({site.place})")
    return Value(site.shape, (*value.labels[:dim], None, *value.labels[dim + 1 :]))


@rule("aten.repeat", "aten.tile")
def repeat(site: Site) -> Value:
    """Contents are repeated whole: so are labels."""
    value = site.first()
    times = list(site.option("repeats" if site.operator == "repeat" else "dims"))
    times = [1] * (len(site.shape) - len(times)) + times
    own: list[Labels] = [*[None] * (len(site.shape) - len(value.shape)), *value.labels]
    labels: list[Labels] = []
    made: list[Labels] = []
    for place, (item, count) in enumerate(zip(own, times, strict=True)):
        single = count == site.shape[place] and len(site.sources) == len(times)
        made.append(site.follower(place, count) if single else None)
        if made[-1] is None:
            labels.append(item if item is None else np.tile(item, count))
        else:  # repeated as often as there are channels
            site.freeze(item, f"one channel is repeated ({site.place})")
            labels.append(made[-1])
    if len(site.sources) == len(times):
        site.settle(made, times)
    return Value(site.shape, tuple(labels))


@rule("aten.repeat_interleave")
def repeat_interleave(site: Site) -> Value:
    """Each index is repeated in place, equally often or not at all known."""
    value, times = site.first(), site.option("repeats")
    labels = list(value.labels)
    if site.option("dim") is None or isinstance(times, Node):
        for own in labels:
            site.freeze(own, f"repeated unevenly ({site.place})")
        return Value.plain(site.shape)
    dim = site.option("dim") % len(value.shape)
    own = labels[dim]
    labels[dim] = None if own is None else np.repeat(own, int(times))
    site.settle([None], [int(times)])
    return Value(site.shape, tuple(labels))


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
def ranked(site: Site) -> Value | Sequence[Value]:
    """Places count here, so channels in the ranked dimension are fixed; the others are handed on."""
    value = site.first()
    dim = site.option_or("dim", 0 if site.operator == "msort" else None)
    dim = dim % len(value.shape) if dim is not None and value.shape else None
    labels: list[Labels] = []
    for axis, own in enumerate(value.labels):
        if dim is None or axis == dim:
            site.freeze(own, f"ranked by value ({site.place})")
        else:
            labels.append(own)
    several = isinstance(site.node.meta["val"], Sequence)
    if dim is None:
        return [Value.plain(shape) for shape in site.shapes] if several else Value.plain(site.shape)
    if len(site.shape) == len(value.shape):
        labels.insert(dim, None)
    result = Value(site.shape, tuple(labels))
    return [result] * len(site.shapes) if several else result


@rule(
    "aten.cumsum",
    "aten.cumprod",
    "aten.logcumsumexp",
    "aten.cummax",
    "aten.cummin",
)
def running(site: Site) -> Value | Sequence[Value]:
    """Freeze the dimension along which values are accumulated in order."""
    value = site.first()
    several = isinstance(site.node.meta["val"], Sequence)
    if value.shape:
        dim = site.option("dim") % len(value.shape)
        site.freeze(value.labels[dim], f"added up in order ({site.place})")
        value = value.replaced(dim, None)
    return [value] * len(site.shapes) if several else value


@rule("aten.diff")
def difference(site: Site) -> Value:
    """Freeze the dimension along which neighbours are subtracted."""
    value = site.first()
    dim = site.option("dim") % len(value.shape)
    reason = f"subtracted from its neighbour ({site.place})"
    site.freeze(value.labels[dim], reason)
    labels = list(value.replaced(dim, None).labels)
    for name in ("prepend", "append"):
        if site.has(name):
            end = site.value(name)
            site.freeze(end.labels[dim], reason)
            others = end.replaced(dim, None).labels
            labels = [site.join(one, other) for one, other in zip(labels, others, strict=True)]
    return Value(site.shape, tuple(labels))
