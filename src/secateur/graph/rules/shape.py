"""Propagate labels through operators that change shapes or the order of dimensions and keep every number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.axis_choices import WHOLE
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


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
def reshape(op: RuleContext) -> Value:
    """Split and merge dimensions: labels are repeated where they merge, a rectangle where they split."""
    value = _refined(op.first(), op.shape)
    labels: list[Labels] = []
    for before, after in _segments(value.shape, op.shape):
        merged = _merge(op, value, before)
        labels.extend(_split(op, merged, after))
    op.constrain_sizes(labels, op.shape)
    for dim, own in enumerate(labels):
        if own is not None and op.is_number_in_code(dim):
            op.record_fixed_sizes(own, [op.shape[dim]])
    return Value(op.shape, tuple(labels))


def _refined(value: Value, new: Sequence[int]) -> Value:
    """Cut dimensions where those of the result end, as long as labels stay on one side of the cut.

    Heads that were merged with the examples of a batch are separated before they are merged with their width.
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
    """List the shortest runs of old and new dimensions that hold the same number of elements."""
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


def _merge(op: RuleContext, value: Value, dims: range) -> Labels:
    """Make one label vector for several dimensions laid end to end."""
    labelled = [dim for dim in dims if value.labels[dim] is not None and value.shape[dim] > 1]
    if not labelled:
        single = [value.labels[dim] for dim in dims if value.labels[dim] is not None]
        if single and math.prod(value.shape[dim] for dim in dims) == 1:
            return single[0]
        for labels in single:
            op.freeze(labels, f"one channel merged with other dimensions ({op.place})")
        return None
    if len(labelled) == 2 and value.shape[labelled[0]] * value.shape[labelled[1]] == math.prod(
        value.shape[dim] for dim in dims
    ):
        opened = op.merge_open(*(value.labels[dim] for dim in labelled))
        if opened is not None:
            return opened
    # A dimension that was only repeated is not kept free; else the outer one is (a head, not its width).
    owned = (dim for dim in labelled if op.slots.are_of_tensors(value.labels[dim]))  # type: ignore[arg-type]
    main = next(owned, labelled[0])
    for dim in labelled:
        if dim != main:
            op.freeze(value.labels[dim], f"merged with another dimension of channels ({op.place})")
    shape = [1] * len(dims)
    shape[main - dims.start] = value.shape[main]
    labels = value.labels[main]
    assert labels is not None
    sizes = [value.shape[dim] for dim in dims]
    return np.ascontiguousarray(np.broadcast_to(labels.reshape(shape), sizes)).ravel()


def _split(op: RuleContext, labels: Labels, dims: range) -> list[Labels]:
    """Split a label vector over several dimensions: one axis stays free, the others are coupled."""
    sizes = [op.shape[dim] for dim in dims]
    if labels is None or len(sizes) == 1:
        return [labels] * len(sizes)
    block = labels.reshape(sizes)
    varying = [axis for axis in range(len(sizes)) if sizes[axis] > 1 and _varies(block, axis)]
    if not varying:
        free = next((axis for axis in range(len(sizes)) if sizes[axis] == len(labels)), None)
        if free is None:
            op.freeze(labels, f"one channel spread over several dimensions ({op.place})")
            return [None] * len(sizes)
        return [labels if axis == free else None for axis in range(len(sizes))]
    # A number in the code cannot follow a cut, so another axis stays free where there is one.
    open_axes = [axis for axis in varying if not op.is_number_in_code(dims[axis])] or varying
    units = [sizes[axis] for axis in open_axes]
    numbers = [sizes[axis] for axis in varying if op.is_number_in_code(dims[axis])]
    opened = {axis: op.open_axis(axis, sizes[axis], labels) for axis in open_axes}
    if any(own is not None for own in opened.values()):
        return [opened.get(axis) for axis in range(len(sizes))]
    place = op.free_axis(units, open_axes)
    if place == WHOLE:
        op.freeze(labels, f"keys and values stay, since single query heads are removed ({op.place})")
        return [None] * len(sizes)
    free = open_axes[place]
    rows = np.moveaxis(block, free, 0).reshape(sizes[free], -1)
    if len(varying) > 1:
        op.join_rows(rows.T)
    kept = np.ascontiguousarray(rows[:, 0])
    op.record_axis(units, place, kept)
    if numbers and len(varying) > 1:
        op.record_fixed_sizes(labels, numbers)
    return [kept if axis == free else None for axis in range(len(sizes))]


def _varies(block: np.ndarray[tuple[int, ...], np.dtype[np.int64]], axis: int) -> bool:
    first = np.take(block, [0], axis=axis)
    return bool((block != first).any())


@rule("aten.permute")
def permute(op: RuleContext) -> Value:
    """Permute labels as the dimensions."""
    value = op.first()
    order = [dim % len(value.shape) for dim in op.option("dims")]
    return Value(op.shape, tuple(value.labels[dim] for dim in order))


@rule("aten.transpose", "aten.swapaxes", "aten.swapdims")
def transpose(op: RuleContext) -> Value:
    """Exchange two dimensions."""
    value = op.first()
    count = len(value.shape)
    one, other = (int(dim) % count for dim in op.node.args[1:3])  # type: ignore[arg-type]
    order = list(range(count))
    order[one], order[other] = order[other], order[one]
    return Value(op.shape, tuple(value.labels[dim] for dim in order))


@rule("aten.t", "aten.numpy_T", "aten.matrix_H")
def matrix_transpose(op: RuleContext) -> Value:
    """Reverse the order of all dimensions."""
    return Value(op.shape, tuple(reversed(op.first().labels)))


@rule("aten.mT", "aten.mH", "aten.adjoint")
def transpose_matrices(op: RuleContext) -> Value:
    """Exchange the last two dimensions."""
    *lead, row, column = op.first().labels
    return Value(op.shape, (*lead, column, row))


@rule("aten.diag_embed")
def diag_embed(op: RuleContext) -> Value:
    """Put the last dimension on the diagonal of a matrix, which has its labels twice."""
    value = op.first()
    *rest, own = value.labels
    places = sorted(op.option_or(name, end) % len(op.shape) for name, end in (("dim1", -2), ("dim2", -1)))
    if op.option_or("offset", 0) != 0:
        op.freeze(own, f"put beside the diagonal ({op.place})")
        own = None
    for place in places:
        rest.insert(place, own)
    return Value(op.shape, tuple(rest))


@rule("aten.diagonal")
def diagonal(op: RuleContext) -> Value:
    """Join two dimensions from which pairs of the same index are picked."""
    value = op.first()
    dims = [op.option_or(name, end) % len(value.shape) for name, end in (("dim1", 0), ("dim2", 1))]
    one, other = (value.labels[dim] for dim in dims)
    if op.option_or("offset", 0) != 0 or value.shape[dims[0]] != value.shape[dims[1]]:
        for labels in (one, other):
            op.freeze(labels, f"picked off the diagonal ({op.place})")
        one = other = None
    rest = [own for dim, own in enumerate(value.labels) if dim not in dims]
    return Value(op.shape, (*rest, op.join(one, other)))


@rule("aten.movedim")
def movedim(op: RuleContext) -> Value:
    """Move dimensions to other places."""
    value = op.first()
    count = len(value.shape)
    source = _as_list(op.option("source"), count)
    target = _as_list(op.option("destination"), count)
    order = [dim for dim in range(count) if dim not in source]
    for place, dim in sorted(zip(target, source, strict=True)):
        order.insert(place, dim)
    return Value(op.shape, tuple(value.labels[dim] for dim in order))


@rule("aten.unsqueeze")
def unsqueeze(op: RuleContext) -> Value:
    """Add a dimension of size one, without channels."""
    value = op.first()
    dim = op.option("dim") % (len(value.shape) + 1)
    return Value(op.shape, (*value.labels[:dim], None, *value.labels[dim:]))


@rule("aten.squeeze")
def squeeze(op: RuleContext) -> Value:
    """Remove dimensions of size one; a single channel there cannot be removed."""
    value = op.first()
    count = len(value.shape)
    named = "dim" in str(op.node.target).rpartition(".")[2]
    dims = _as_list(op.option("dim"), count) if named else list(range(count))
    gone = {dim for dim in dims if value.shape[dim] == 1}
    for dim in gone:
        op.freeze(value.labels[dim], f"a single channel is dropped as a dimension ({op.place})")
    kept = tuple(value.labels[dim] for dim in range(count) if dim not in gone)
    return Value(op.shape, kept)


@rule("aten.expand", "aten.broadcast_to")
def expand(op: RuleContext) -> Value:
    """Repeat dimensions of size one; the others keep their labels."""
    value = op.first()
    lead = len(op.shape) - len(value.shape)
    labels = [op.labels_of_size(place, size) for place, size in enumerate(op.shape[:lead])]
    for dim, size in enumerate(value.shape):
        if size == op.shape[lead + dim]:
            labels.append(value.labels[dim])
        else:
            op.freeze(value.labels[dim], f"one channel is repeated ({op.place})")
            labels.append(op.labels_of_size(lead + dim, op.shape[lead + dim]))
    op.constrain_sizes(labels, op.shape)
    return Value(op.shape, tuple(labels))


@rule("aten.expand_as")
def expand_as(op: RuleContext) -> Value:
    """Repeat dimensions of size one as often as another tensor has channels."""
    value, other = op.value("self"), op.value("other")
    lead = len(op.shape) - len(value.shape)
    labels = list(other.labels)
    for dim, size in enumerate(value.shape):
        if size == op.shape[lead + dim]:
            labels[lead + dim] = op.join(value.labels[dim], other.labels[lead + dim])
        else:
            op.freeze(value.labels[dim], f"one channel is repeated ({op.place})")
    return Value(op.shape, tuple(labels))


def _as_list(dims: int | Sequence[int], count: int) -> list[int]:
    listed = dims if isinstance(dims, Sequence) else [dims]
    return [dim % count for dim in listed]


@rule("aten.as_strided")
def as_strided(op: RuleContext) -> Value:
    """Keep the labels of dimensions that the view of memory reads whole and in order, and freeze the others.

    Sizes and strides that are made of widths follow them, which a trial has to check.
    """
    value = op.first()
    labels: list[Labels] = [None] * len(op.shape)
    for dim, own in enumerate(value.labels):
        if own is None:
            continue
        axis = _axis_that_reads(op, value.shape, dim)
        if axis is None or not op.assume():
            op.freeze(own, f"a view of memory reads some channels in another order ({op.place})")
        else:
            labels[axis] = own
    op.constrain_sizes(labels, op.shape)
    return Value(op.shape, tuple(labels))


def _axis_that_reads(op: RuleContext, shape: Sequence[int], dim: int) -> int | None:
    """Find the dimension of a strided view that counts the same indices as one of its argument.

    In dense memory, an index of a dimension is ``place // stride % size``. It is that of one dimension of the
    view if this one has the same stride and size, and all others change only what lies below it, without
    reaching the stride, or what lies above it.

    Returns:
        The dimension of the view, ``None`` if there is none.
    """
    memory, strides, start = op.strides("self"), op.option("stride"), op.option("storage_offset") or 0
    if not _is_dense(shape, memory) or start + _reach(op.shape, strides) >= math.prod(shape):
        return None
    step, above = memory[dim], memory[dim] * shape[dim]
    moving = [axis for axis, size in enumerate(op.shape) if size > 1 and strides[axis] % above]
    along = [axis for axis in moving if strides[axis] % step == 0]
    below = [axis for axis in moving if strides[axis] % step]
    reach = _reach([op.shape[axis] for axis in below], [strides[axis] for axis in below])
    same = [(op.shape[axis], strides[axis]) for axis in along] == [(shape[dim], step)]
    return along[0] if same and start % above + reach < step else None


def _reach(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Return the distance in memory between the first and the last element of a view."""
    return sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether a tensor fills its memory without gaps or overlaps, in any order of its dimensions."""
    filled = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != filled:
            return False
        filled *= size
    return True
