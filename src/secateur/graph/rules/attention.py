"""Propagate labels through attention as one operator."""

from __future__ import annotations

import numpy as np

from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine


@rule("aten.scaled_dot_product_attention")
def attention(op: RuleContext) -> Value:
    """Contract queries with keys, pass on values, and join the heads of all three.

    If no scale is given, the operator divides by the root of the width of a head, so that
    width has to stay as it is, and whole heads go. With grouped queries, a head of keys and values goes
    together with the heads of queries that it serves.
    """
    query, key, value = (op.value(name) for name in ("query", "key", "value"))
    last = len(query.shape) - 1
    heads = [(dim, dim) for dim in range(last - 1)]
    op.record_product(query, key, heads, [(last, last)])
    op.record_product(query, value, heads)
    if op.option("scale") is None:
        for item in (query, key, value):
            op.reject_axis(item.labels[-1])
    width = op.join(query.labels[-1], key.labels[-1])
    if op.option("scale") is None:
        instead = op.advice_on(width)
        also = f"; for whole heads, {instead}" if instead else ""
        op.freeze(width, f"the scale of attention depends on the width of a head ({op.place}){also}")
    else:
        op.read("query", -1, width)
    for labels in (query.labels[-2], key.labels[-2], value.labels[-2]):
        op.freeze(labels, f"used as a position of attention ({op.place})")
    lead = op.shape[:-2]
    stacks = [Value(item.shape[:-2], item.labels[:-2]) for item in (query, key, value)]
    if op.option_or("enable_gqa", False):
        rigid = [item.labels[-1] is None for item in (key, value)]
        stacks[1:] = [_shared_heads(op, *found, lead[-1]) for found in zip(stacks[1:], rigid, strict=True)]
    if op.has("attn_mask"):
        stacks.append(_mask(op))
        _freeze_beside_fixed(op, stacks)
    joined = combine(op, stacks, lead)
    outgoing = value.labels[-1]
    if joined.labels and joined.labels[-1] is not None and outgoing is not None:
        op.freeze(outgoing, f"whole heads are removed ({op.place})")
        outgoing = None
    positions = query.shape[-2] * key.shape[-2]
    result = Value(op.shape, (*joined.labels, None, outgoing))
    op.add_macs(positions, *joined.extents, query.shape[-1] if width is None else width)
    op.add_macs(positions, *joined.extents, result.extents[-1])
    return result


def _shared_heads(op: RuleContext, stack: Value, rigid: bool, heads: int) -> Value:
    """Repeat heads of keys or values as the queries see them: each serves as many as come to it.

    Where keys or values lose nothing, the same query heads of all of them can be removed.
    """
    own, count = stack.labels[-1], stack.shape[-1]
    if count == 1:  # one head, which any number of queries share
        return stack
    if own is None:
        served = np.tile(op.slots.fresh(heads // count), count) if rigid else None
    else:
        served = np.repeat(own, heads // count)
    return Value((*stack.shape[:-1], heads), (*stack.labels[:-1], served))


def _mask(op: RuleContext) -> Value:
    """Return the mask or bias without its positions."""
    mask = op.value("attn_mask")
    for labels in mask.labels[-2:]:
        op.freeze(labels, f"used as a position of attention ({op.place})")
    return Value(mask.shape[:-2], mask.labels[:-2])


def _freeze_beside_fixed(op: RuleContext, stacks: list[Value]) -> None:
    """Freeze heads that the mask has a part for each of, made for a fixed number of heads."""
    *others, mask = stacks
    if mask.shape and mask.shape[-1] > 1 and mask.labels[-1] is None:
        for item in others:
            op.freeze(
                item.labels[-1],
                "the mask or bias of attention has a part for each head, computed for this number of heads "
                f"({op.place})",
            )
