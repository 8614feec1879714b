"""Propagate labels through operators that concatenate, split or shift tensors along a dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import joined


@rule("aten.cat", "aten.concat", "aten.concatenate")
def concatenate(op: RuleContext) -> Value:
    """Lay labels end to end along one dimension and join them along the others."""
    parts = [part for part in op.values("tensors") if part.shape != (0,)]
    dim = op.option("dim") % len(op.shape)
    labels: list[Labels] = []
    for axis in range(len(op.shape)):
        vectors = [part.labels[axis] for part in parts]
        labels.append(_end_to_end(op, parts, dim) if axis == dim else joined(op, vectors))
    return Value(op.shape, tuple(labels))


@rule("aten.block_diag")
def block_diagonal(op: RuleContext) -> Value:
    """Lay the rows of matrices end to end, and their columns; a vector is one row."""
    parts = []
    for part in op.values("tensors"):
        missing = 2 - len(part.shape)
        parts.append(Value((*(1,) * missing, *part.shape), (*(None,) * missing, *part.labels)))
    return Value(op.shape, (_end_to_end(op, parts, 0), _end_to_end(op, parts, 1)))


def _end_to_end(op: RuleContext, parts: list[Value], dim: int) -> Labels:
    if all(part.labels[dim] is None for part in parts):
        return None
    vectors = []
    for part in parts:
        labels = part.labels[dim]
        if labels is None:
            labels = op.slots.fresh(part.shape[dim])
            op.freeze(labels, f"values that are not channels, concatenated with channels ({op.place})")
        vectors.append(labels)
    return np.concatenate(vectors)


@rule("aten.stack")
def stack(op: RuleContext) -> Value:
    """Add a dimension without channels; join the others."""
    parts = op.values("tensors")
    dim = op.option("dim") % len(op.shape)
    labels = [joined(op, [part.labels[axis] for part in parts]) for axis in range(len(parts[0].shape))]
    labels.insert(dim, None)
    return Value(op.shape, tuple(labels))


@rule(
    "aten.chunk",
    "aten.split",
    "aten.split_with_sizes",
    "aten.tensor_split",
    "aten.unsafe_chunk",
    "aten.unsafe_split",
)
def pieces(op: RuleContext) -> Sequence[Value]:
    """Cut consecutive pieces: equal ones are coupled index by index, unequal ones stay whole."""
    value = op.first()
    dim = op.option("dim") % len(value.shape)
    labels = value.labels[dim]
    sizes = [shape[dim] for shape in op.shapes]
    if labels is None:
        return [Value(shape, value.labels) for shape in op.shapes]
    cuts = np.split(labels, np.cumsum(sizes)[:-1])
    known = op.sources[: len(cuts)]
    if len(known) == len(cuts) and (len(cuts) > 1 and any(known)):
        op.constrain_sizes(cuts, sizes)
        for cut, source in zip(cuts, known, strict=True):
            if source is None:
                op.freeze(cut, f"split at fixed places ({op.place})")
    elif len(set(sizes)) == 1:
        op.constrain_sizes(cuts[:1], sizes[:1])
        op.join_rows(cuts)
    elif op.operator.endswith("chunk") and len(sizes) == op.option("chunks"):
        _join_as_far_as_last(op, cuts)
    else:
        op.freeze(labels, f"split into unequal pieces ({op.place})")
    return [_with(value, shape, dim, cut) for shape, cut in zip(op.shapes, cuts, strict=True)]


def _join_as_far_as_last(op: RuleContext, cuts: Sequence[IntArray]) -> None:
    """Couple the channels of unequal chunks; freeze the surplus of the longer ones."""
    count = len(cuts[-1])
    for cut in cuts[:-1]:
        op.join(cut[:count], cuts[-1])
        op.freeze(cut[count:], f"makes one chunk longer than another ({op.place})")


def _with(value: Value, shape: tuple[int, ...], dim: int, labels: Labels) -> Value:
    return Value(shape, (*value.labels[:dim], labels, *value.labels[dim + 1 :]))


@rule("aten.unbind")
def unbind(op: RuleContext) -> Sequence[Value]:
    """Freeze each index of the dimension that is taken apart."""
    value = op.first()
    dim = op.option("dim") % len(value.shape)
    op.freeze(value.labels[dim], f"taken apart index by index ({op.place})")
    labels = (*value.labels[:dim], *value.labels[dim + 1 :])
    return [Value(shape, labels) for shape in op.shapes]


@rule("aten.select")
def select(op: RuleContext) -> Value:
    """Freeze the index of a dimension that is picked."""
    value = op.first()
    dim = op.option("dim") % len(value.shape)
    op.freeze(value.labels[dim], f"one index is picked ({op.place})")
    return Value(op.shape, (*value.labels[:dim], *value.labels[dim + 1 :]))


@rule("aten.slice", "aten.narrow")
def cut_out(op: RuleContext) -> Value:
    """Cut a range of a dimension: all, nothing, or between borders that follow the widths or are fixed."""
    value = op.first()
    dim = op.option("dim") % len(value.shape)
    labels = value.labels[dim]
    if op.shape[dim] == value.shape[dim]:
        return value
    if op.shape[dim] == 0:  # a range that is empty stays so when the dimension shrinks
        return _with(value, op.shape, dim, None if labels is None else labels[:0])
    piece = _every_other(op, labels)
    if piece is None:
        piece = _between(op, labels, dim)
    if piece is None:
        piece = _equal_piece(op, labels, dim)
    if piece is None:
        piece = _beside_numbers(op, labels, dim)
    if piece is None:
        op.freeze(labels, f"cut at fixed places ({op.place})")
    return _with(value, op.shape, dim, piece)


def _every_other(op: RuleContext, labels: Labels) -> Labels:
    """Take every n-th channel to the end: runs of n go together, so that each keeps its place in its run."""
    step, start, end = (int(op.option_or(name, None) or 0) for name in ("step", "start", "end"))
    if labels is None or step < 2 or not 0 <= start < step or 0 < end < len(labels) or end < 0:
        return None
    for place in range(step):
        run = labels[place::step]
        op.join(run, labels[::step][: len(run)])
    return labels[start::step]


def _between(op: RuleContext, labels: Labels, dim: int) -> Labels:
    """Cut a range whose borders come from attributes or other sizes, or are the ends."""
    if labels is None or len(op.sources) != 2 or op.option_or("step", 1) != 1:
        return None
    given = (op.option("start") or 0), op.option_or("end", None)
    start = given[0] % len(labels)
    stop = start + op.shape[dim]
    before, through = op.sources
    if (before is None and start > 0) or (through is None and stop < len(labels)):
        return None
    op.constrain_borders(labels, (start, stop), given)
    return labels[start:stop]


def _equal_piece(op: RuleContext, labels: Labels, dim: int) -> Labels:
    """Cut one of several equal pieces, if borders are where these end; that they follow is a proposal."""
    size = op.shape[dim]
    start = op.option("start") or 0
    if labels is None or op.option_or("step", 1) != 1 or len(labels) % size or not isinstance(start, int):
        return None
    start = start % len(labels)
    end = op.option_or("end", None)
    if len(op.sources) == 2 and op.sources[1] is None and isinstance(end, int) and end < 0:
        return None  # so many at the end stay behind at any width
    if start % size or not op.assume():
        return None
    op.join_rows(labels.reshape(-1, size))
    return labels[start : start + size]


def _beside_numbers(op: RuleContext, labels: Labels, dim: int) -> Labels:
    """Slice with a constant bound: keep the number of channels before the bound."""
    if labels is None or len(op.sources) != 2 or op.option_or("step", 1) != 1:
        return None
    given = (op.option("start") or 0), op.option_or("end", None)
    start = given[0] % len(labels)
    stop = start + op.shape[dim]
    for source, place, number in zip(op.sources, (start, stop), given, strict=True):
        if source is None and isinstance(number, int) and abs(number) <= len(labels):
            op.freeze(labels[place:] if number < 0 else labels[:place], f"cut at fixed places ({op.place})")
    op.constrain_borders(labels, (start, stop), given)
    return labels[start:stop]


@rule("aten.pad", "aten.constant_pad_nd")
def pad(op: RuleContext) -> Value:
    """Pass channels on if positions are padded; padding of channels gets new labels."""
    value = op.first()
    widths = list(op.option("pad"))
    labels = list(value.labels)
    taken: list[str] = []
    for pair in range(len(widths) // 2):
        dim = len(value.shape) - 1 - pair
        old = labels[dim]
        if old is None or (widths[2 * pair] == 0 and widths[2 * pair + 1] == 0):
            continue
        ends = [_padding(op, place, widths[place], taken) for place in (2 * pair, 2 * pair + 1)]
        labels[dim] = np.concatenate([ends[0], old, ends[1]])
    return Value(op.shape, tuple(labels))


def _padding(op: RuleContext, place: int, width: int, taken: list[str]) -> IntArray:
    """Make the channels that padding adds: as many as the code or an attribute says, or fixed."""
    slots = op.slots.fresh(width)
    if width == 0:
        return slots
    if place < len(op.sources) and op.sources[place] is not None:
        op.constrain_sizes([None] * place + [slots], [0] * place + [width])
        return slots
    name = op.attribute_with_value(slots, taken)
    if name is None:
        op.freeze(slots, f"padded with a fixed number of channels ({op.place})")
    else:
        taken.append(name)
    return slots


@rule("aten.flip")
def flip(op: RuleContext) -> Value:
    """Reverse a dimension, and its labels with it."""
    value = op.first()
    labels = list(value.labels)
    for dim in op.option("dims"):
        own = labels[dim]
        labels[dim] = None if own is None else own[::-1].copy()
    return Value(op.shape, tuple(labels))


@rule("aten.rot90")
def turn(op: RuleContext) -> Value:
    """Turn a plane by right angles: its dimensions are reversed, or change places and one is reversed."""
    value = op.first()
    labels = list(value.labels)
    one, other = (dim % len(labels) for dim in op.option("dims"))
    turns = op.option("k") % 4
    for dim, angles in ((one, (2, 3)), (other, (1, 2))):
        own = labels[dim]
        labels[dim] = own[::-1].copy() if own is not None and turns in angles else own
    if turns % 2:
        labels[one], labels[other] = labels[other], labels[one]
    return Value(op.shape, tuple(labels))


@rule("aten.roll")
def roll(op: RuleContext) -> Value:
    """Freeze channels along which contents move by a fixed number of places."""
    value = op.first()
    for dim in op.option("dims") or range(len(value.shape)):
        op.freeze(value.labels[dim], f"rolled by a fixed number of places ({op.place})")
    return value
