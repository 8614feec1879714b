"""Operators that join tensors, take them apart, or move their contents along a dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule("aten.cat", "aten.concat", "aten.concatenate")
def concatenate(site: Site) -> Value:
    """Labels are laid end to end along one dimension and joined along the others."""
    parts = [part for part in site.values("tensors") if part.shape != (0,)]
    dim = site.option("dim") % len(site.shape)
    labels: list[Labels] = []
    for axis in range(len(site.shape)):
        vectors = [part.labels[axis] for part in parts]
        labels.append(_end_to_end(site, parts, dim) if axis == dim else _all_joined(site, vectors))
    return Value(site.shape, tuple(labels))


def _end_to_end(site: Site, parts: list[Value], dim: int) -> Labels:
    if all(part.labels[dim] is None for part in parts):
        return None
    vectors = []
    for part in parts:
        labels = part.labels[dim]
        if labels is None:
            labels = site.slots.fresh(part.shape[dim])
            site.freeze(labels, f"values that are not channels, concatenated with channels ({site.place})")
        vectors.append(labels)
    return np.concatenate(vectors)


def _all_joined(site: Site, vectors: list[Labels]) -> Labels:
    result = vectors[0]
    for vector in vectors[1:]:
        result = site.join(result, vector)
    return result


@rule("aten.stack")
def stack(site: Site) -> Value:
    """A new dimension without channels; the others are joined."""
    parts = site.values("tensors")
    dim = site.option("dim") % len(site.shape)
    labels = [_all_joined(site, [part.labels[axis] for part in parts]) for axis in range(len(parts[0].shape))]
    labels.insert(dim, None)
    return Value(site.shape, tuple(labels))


@rule(
    "aten.chunk",
    "aten.split",
    "aten.split_with_sizes",
    "aten.tensor_split",
    "aten.unsafe_chunk",
    "aten.unsafe_split",
)
def pieces(site: Site) -> Sequence[Value]:
    """Consecutive pieces: equal ones are coupled index by index, unequal ones stay whole."""
    value = site.first()
    dim = site.option("dim") % len(value.shape)
    labels = value.labels[dim]
    sizes = [shape[dim] for shape in site.shapes]
    if labels is None:
        return [Value(shape, value.labels) for shape in site.shapes]
    cuts = np.split(labels, np.cumsum(sizes)[:-1])
    known = site.sources[: len(cuts)]
    if len(known) == len(cuts) and (len(cuts) > 1 and any(known)):
        site.settle(cuts, sizes)
        for cut, source in zip(cuts, known, strict=True):
            if source is None:
                site.freeze(cut, f"split at fixed places ({site.place})")
    elif len(set(sizes)) == 1:
        site.settle(cuts[:1], sizes[:1])
        for cut in cuts[1:]:
            site.join(cut, cuts[0])
    else:
        site.freeze(labels, f"split into unequal pieces ({site.place})")
    return [_with(value, shape, dim, cut) for shape, cut in zip(site.shapes, cuts, strict=True)]


def _with(value: Value, shape: tuple[int, ...], dim: int, labels: Labels) -> Value:
    return Value(shape, (*value.labels[:dim], labels, *value.labels[dim + 1 :]))


@rule("aten.unbind")
def unbind(site: Site) -> Sequence[Value]:
    """One dimension is taken apart: each of its indices is fixed."""
    value = site.first()
    dim = site.option("dim") % len(value.shape)
    site.freeze(value.labels[dim], f"taken apart index by index ({site.place})")
    labels = (*value.labels[:dim], *value.labels[dim + 1 :])
    return [Value(shape, labels) for shape in site.shapes]


@rule("aten.select")
def select(site: Site) -> Value:
    """One index of a dimension is picked: it is fixed."""
    value = site.first()
    dim = site.option("dim") % len(value.shape)
    site.freeze(value.labels[dim], f"one index is picked ({site.place})")
    return Value(site.shape, (*value.labels[:dim], *value.labels[dim + 1 :]))


@rule("aten.slice", "aten.narrow")
def cut_out(site: Site) -> Value:
    """A range of a dimension: the whole of it, or between borders that follow the widths or are fixed."""
    value = site.first()
    dim = site.option("dim") % len(value.shape)
    labels = value.labels[dim]
    if site.shape[dim] == value.shape[dim]:
        return value
    piece = _every_other(site, labels)
    if piece is None:
        piece = _between(site, labels, dim)
    if piece is None:
        piece = _equal_piece(site, labels, dim)
    if piece is None:
        site.freeze(labels, f"cut at fixed places ({site.place})")
    return _with(value, site.shape, dim, piece)


def _every_other(site: Site, labels: Labels) -> Labels:
    """Every n-th channel to the end: runs of n go together, so that each keeps its place in its run."""
    step, start, end = (int(site.option_or(name, None) or 0) for name in ("step", "start", "end"))
    if labels is None or step < 2 or not 0 <= start < step or 0 < end < len(labels) or end < 0:
        return None
    for place in range(step):
        run = labels[place::step]
        site.join(run, labels[::step][: len(run)])
    return labels[start::step]


def _between(site: Site, labels: Labels, dim: int) -> Labels:
    """A range whose borders are known to come from attributes or other sizes, or are the ends."""
    if labels is None or len(site.sources) != 2 or site.option_or("step", 1) != 1:
        return None
    given = (site.option("start") or 0), site.option_or("end", None)
    start = given[0] % len(labels)
    stop = start + site.shape[dim]
    before, through = site.sources
    if (before is None and start > 0) or (through is None and stop < len(labels)):
        return None
    site.settle_borders(labels, (start, stop), given)
    return labels[start:stop]


def _equal_piece(site: Site, labels: Labels, dim: int) -> Labels:
    """One of several equal pieces, if borders are where equal pieces end; that they follow is a proposal."""
    size = site.shape[dim]
    start = site.option("start") or 0
    if labels is None or site.option_or("step", 1) != 1 or len(labels) % size or not isinstance(start, int):
        return None
    start = start % len(labels)
    if start % size or not site.propose():
        return None
    rows = labels.reshape(-1, size)
    for row in rows[1:]:
        site.join(row, rows[0])
    return labels[start : start + size]


@rule("aten.pad", "aten.constant_pad_nd")
def pad(site: Site) -> Value:
    """Padding in positions hands channels on; padded channels come from nothing."""
    value = site.first()
    widths = list(site.option("pad"))
    labels = list(value.labels)
    taken: list[str] = []
    for pair in range(len(widths) // 2):
        dim = len(value.shape) - 1 - pair
        old = labels[dim]
        if old is None or (widths[2 * pair] == 0 and widths[2 * pair + 1] == 0):
            continue
        ends = [_padding(site, place, widths[place], taken) for place in (2 * pair, 2 * pair + 1)]
        labels[dim] = np.concatenate([ends[0], old, ends[1]])
    return Value(site.shape, tuple(labels))


def _padding(site: Site, place: int, width: int, taken: list[str]) -> IntArray:
    """Channels that padding adds: as many as the code or an attribute of the module says, or fixed."""
    slots = site.slots.fresh(width)
    if width == 0:
        return slots
    if place < len(site.sources) and site.sources[place] is not None:
        site.settle([None] * place + [slots], [0] * place + [width])
        return slots
    name = site.attribute_with_value(slots, taken)
    if name is None:
        site.freeze(slots, f"padded with a fixed number of channels ({site.place})")
    else:
        taken.append(name)
    return slots


@rule("aten.flip")
def flip(site: Site) -> Value:
    """A dimension in reverse order, and its labels with it."""
    value = site.first()
    labels = list(value.labels)
    for dim in site.option("dims"):
        own = labels[dim]
        labels[dim] = None if own is None else own[::-1].copy()
    return Value(site.shape, tuple(labels))


@rule("aten.roll")
def roll(site: Site) -> Value:
    """Contents move along a dimension by a fixed number of places: channels there are fixed."""
    value = site.first()
    for dim in site.option("dims") or range(len(value.shape)):
        site.freeze(value.labels[dim], f"rolled by a fixed number of places ({site.place})")
    return value
