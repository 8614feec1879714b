"""Operators that change the shape or the order of dimensions and keep every number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule(
    "aten.view",
    "aten.reshape",
    "aten._unsafe_view",
    "aten._reshape_alias",
    "aten.flatten",
    "aten.unflatten",
    "aten.reshape_as",
    "aten.view_as",
)
def reshape(site: Site) -> Value:
    """Split and merges dimensions: labels are repeated where they merge, a rectangle where they split."""
    value = _refined(site.first(), site.shape)
    labels: list[Labels] = []
    for before, after in _segments(value.shape, site.shape):
        merged = _merge(site, value, before)
        labels.extend(_split(site, merged, after))
    site.settle(labels, site.shape)
    return Value(site.shape, tuple(labels))


def _refined(value: Value, new: Sequence[int]) -> Value:
    """Cut dimensions where those of the result end, as long as labels stay on one side of the cut.

    Heads that were merged with the examples of a batch come apart before they are merged with their width.
    """
    shape, labels = list(value.shape), list(value.labels)
    ends = [math.prod(new[: place + 1]) for place in range(len(new))]
    place, done = 0, 1
    while place < len(shape) and 0 not in shape:
        outer = next((end // done for end in ends if end > done and end % done == 0), shape[place])
        if 1 < outer < shape[place] and shape[place] % outer == 0:
            sizes, own = [outer, shape[place] // outer], labels[place]
            block = None if own is None else own.reshape(sizes)
            varies = [False, False] if block is None else [_varies(block, axis) for axis in (0, 1)]
            if own is None or varies[0] != varies[1]:
                parts = (None, None) if block is None else (block[:, 0], block[0])
                shape[place : place + 1] = sizes
                labels[place : place + 1] = [
                    part if on else None for part, on in zip(parts, varies, strict=True)
                ]
        done *= shape[place]
        place += 1
    return Value(tuple(shape), tuple(labels))


def _segments(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The shortest runs of old and new dimensions that hold the same number of elements."""
    left = right = 0
    while left < len(old) or right < len(new):
        begin, start = left, right
        size_old = old[left] if left < len(old) else 1
        size_new = new[right] if right < len(new) else 1
        left, right = min(left + 1, len(old)), min(right + 1, len(new))
        while size_old != size_new:
            if size_old < size_new:
                size_old *= old[left]
                left += 1
            else:
                size_new *= new[right]
                right += 1
        yield range(begin, left), range(start, right)


def _merge(site: Site, value: Value, dims: range) -> Labels:
    """One label vector for several dimensions laid end to end."""
    labelled = [dim for dim in dims if value.labels[dim] is not None and value.shape[dim] > 1]
    if not labelled:
        single = [value.labels[dim] for dim in dims if value.labels[dim] is not None]
        if single and math.prod(value.shape[dim] for dim in dims) == 1:
            return single[0]
        for labels in single:
            site.freeze(labels, f"one channel merged with other dimensions ({site.place})")
        return None
    # Contents that were only repeated give way; else the outer dimension stays free (a head, not its width).
    main = next((dim for dim in labelled if _owned(site, value.labels[dim])), labelled[0])
    for dim in labelled:
        if dim != main:
            site.freeze(value.labels[dim], f"merged with another dimension of channels ({site.place})")
    shape = [1] * len(dims)
    shape[main - dims.start] = value.shape[main]
    labels = value.labels[main]
    assert labels is not None
    sizes = [value.shape[dim] for dim in dims]
    return np.ascontiguousarray(np.broadcast_to(labels.reshape(shape), sizes)).ravel()


def _owned(site: Site, labels: Labels) -> bool:
    return labels is not None and bool((labels < site.slots.tensor_slots).any())


def _split(site: Site, labels: Labels, dims: range) -> list[Labels]:
    """Deal a label vector out to several dimensions: one axis stays free, the others are coupled."""
    sizes = [site.shape[dim] for dim in dims]
    if labels is None:
        return [None] * len(sizes)
    block = labels.reshape(sizes)
    varying = [axis for axis in range(len(sizes)) if sizes[axis] > 1 and _varies(block, axis)]
    if not varying:
        free = next((axis for axis in range(len(sizes)) if sizes[axis] == len(labels)), None)
        if free is None:
            site.freeze(labels, f"one channel spread over several dimensions ({site.place})")
            return [None] * len(sizes)
        return [labels if axis == free else None for axis in range(len(sizes))]
    # A number in the code cannot follow a cut, so another axis stays free where there is one.
    open_axes = [axis for axis in varying if not site.is_number_in_code(dims[axis])] or varying
    units = [sizes[axis] for axis in open_axes]
    place = site.choose(units) if len(open_axes) > 1 else 0
    free = open_axes[place]
    rows = np.moveaxis(block, free, 0).reshape(sizes[free], -1)
    for column in range(1, rows.shape[1] if len(varying) > 1 else 1):
        site.join(rows[:, column], rows[:, 0])
    kept = np.ascontiguousarray(rows[:, 0])
    if len(open_axes) > 1:
        site.chose(units, place, kept)
    return [kept if axis == free else None for axis in range(len(sizes))]


def _varies(block: np.ndarray[tuple[int, ...], np.dtype[np.int64]], axis: int) -> bool:
    first = np.take(block, [0], axis=axis)
    return bool((block != first).any())


@rule("aten.permute")
def permute(site: Site) -> Value:
    """Dimensions change places, and labels with them."""
    value = site.first()
    order = [dim % len(value.shape) for dim in site.option("dims")]
    return Value(site.shape, tuple(value.labels[dim] for dim in order))


@rule("aten.transpose", "aten.swapaxes", "aten.swapdims")
def transpose(site: Site) -> Value:
    """Two dimensions change places."""
    value = site.first()
    count = len(value.shape)
    one, other = (int(dim) % count for dim in site.node.args[1:3])  # type: ignore[arg-type]
    order = list(range(count))
    order[one], order[other] = order[other], order[one]
    return Value(site.shape, tuple(value.labels[dim] for dim in order))


@rule("aten.t", "aten.numpy_T", "aten.matrix_H")
def matrix_transpose(site: Site) -> Value:
    """All dimensions in reverse order."""
    return Value(site.shape, tuple(reversed(site.first().labels)))


@rule("aten.mT", "aten.mH", "aten.adjoint")
def transpose_matrices(site: Site) -> Value:
    """The last two dimensions change places."""
    *lead, row, column = site.first().labels
    return Value(site.shape, (*lead, column, row))


@rule("aten.movedim")
def movedim(site: Site) -> Value:
    """Dimensions move to other places."""
    value = site.first()
    count = len(value.shape)
    source = _listed(site.option("source"), count)
    target = _listed(site.option("destination"), count)
    order = [dim for dim in range(count) if dim not in source]
    for place, dim in sorted(zip(target, source, strict=True)):
        order.insert(place, dim)
    return Value(site.shape, tuple(value.labels[dim] for dim in order))


@rule("aten.unsqueeze")
def unsqueeze(site: Site) -> Value:
    """A new dimension of size one, without channels."""
    value = site.first()
    dim = site.option("dim") % (len(value.shape) + 1)
    return Value(site.shape, (*value.labels[:dim], None, *value.labels[dim:]))


@rule("aten.squeeze")
def squeeze(site: Site) -> Value:
    """Dimensions of size one vanish; a single channel there cannot be removed."""
    value = site.first()
    count = len(value.shape)
    named = "dim" in str(site.node.target).rpartition(".")[2]
    dims = _listed(site.option("dim"), count) if named else list(range(count))
    gone = {dim for dim in dims if value.shape[dim] == 1}
    for dim in gone:
        site.freeze(value.labels[dim], f"a single channel is dropped as a dimension ({site.place})")
    kept = tuple(value.labels[dim] for dim in range(count) if dim not in gone)
    return Value(site.shape, kept)


@rule("aten.expand", "aten.broadcast_to")
def expand(site: Site) -> Value:
    """Dimensions of size one are repeated; the others keep their labels."""
    value = site.first()
    lead = len(site.shape) - len(value.shape)
    labels = [site.follower(place, size) for place, size in enumerate(site.shape[:lead])]
    for dim, size in enumerate(value.shape):
        if size == site.shape[lead + dim]:
            labels.append(value.labels[dim])
        else:
            site.freeze(value.labels[dim], f"one channel is repeated ({site.place})")
            labels.append(site.follower(lead + dim, site.shape[lead + dim]))
    site.settle(labels, site.shape)
    return Value(site.shape, tuple(labels))


@rule("aten.expand_as")
def expand_as(site: Site) -> Value:
    """Dimensions of size one are repeated as often as another tensor has channels."""
    value, other = site.value("self"), site.value("other")
    lead = len(site.shape) - len(value.shape)
    labels = list(other.labels)
    for dim, size in enumerate(value.shape):
        if size == site.shape[lead + dim]:
            labels[lead + dim] = site.join(value.labels[dim], other.labels[lead + dim])
        else:
            site.freeze(value.labels[dim], f"one channel is repeated ({site.place})")
    return Value(site.shape, tuple(labels))


def _listed(dims: int | Sequence[int], count: int) -> list[int]:
    listed = dims if isinstance(dims, Sequence) else [dims]
    return [dim % count for dim in listed]
