"""Attention as one operator."""

from __future__ import annotations

import numpy as np

from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine


@rule("aten.scaled_dot_product_attention")
def attention(op: RuleContext) -> Value:
    """Queries meet keys and are contracted; values are handed on; heads are dimensions that meet.

    Without a scale of its own the operator divides by the root of the width of a head, so that
    width has to stay as it is, and whole heads go. With grouped queries, a head of keys and values goes
    together with the heads of queries that it serves.
    """
    query, key, value = (op.value(name) for name in ("query", "key", "value"))
    if op.option("scale") is None:
        for item in (query, key, value):
            op.reject_axis(item.labels[-1])
    width = op.join(query.labels[-1], key.labels[-1])
    if op.option("scale") is None:
        op.freeze(width, f"the scale of attention depends on the width of a head ({op.place})")
    else:
        op.read("query", -1, width)
    for labels in (query.labels[-2], key.labels[-2], value.labels[-2]):
        op.freeze(labels, f"used as a position of attention ({op.place})")
    lead = op.shape[:-2]
    stacks = [Value(item.shape[:-2], item.labels[:-2]) for item in (query, key, value)]
    if op.option_or("enable_gqa", False):
        stacks = [stacks[0], *(_shared_heads(stack, lead[-1]) for stack in stacks[1:])]
    if op.has("attn_mask"):
        stacks.append(_mask(op))
    joined = combine(op, stacks, lead)
    outgoing = value.labels[-1]
    if joined.labels and joined.labels[-1] is not None and outgoing is not None:
        op.freeze(outgoing, f"whole heads are removed ({op.place})")
        outgoing = None
    positions = query.shape[-2] * key.shape[-2]
    extents = [_extent(size, labels) for size, labels in zip(lead, joined.labels, strict=True)]
    op.add_macs(positions, *extents, _extent(query.shape[-1], width))
    op.add_macs(positions, *extents, _extent(value.shape[-1], outgoing))
    return Value(op.shape, (*joined.labels, None, outgoing))


def _shared_heads(stack: Value, heads: int) -> Value:
    """Heads of keys or values as the queries see them: each serves as many queries as come to it."""
    own, count = stack.labels[-1], stack.shape[-1]
    if count == 1:  # one head, which any number of queries share
        return stack
    served = None if own is None else np.repeat(own, heads // count)
    return Value((*stack.shape[:-1], heads), (*stack.labels[:-1], served))


def _mask(op: RuleContext) -> Value:
    """The mask or bias without its positions."""
    mask = op.value("attn_mask")
    for labels in mask.labels[-2:]:
        op.freeze(labels, f"used as a position of attention ({op.place})")
    return Value(mask.shape[:-2], mask.labels[:-2])


def _extent(size: int, labels: Labels) -> Labels | int:
    return size if labels is None else labels
