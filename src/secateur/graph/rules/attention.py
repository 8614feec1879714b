"""Attention as one operator."""

from __future__ import annotations

import numpy as np

from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine
from secateur.graph.site import Site


@rule("aten.scaled_dot_product_attention")
def attention(site: Site) -> Value:
    """Queries meet keys and are contracted; values are handed on; heads are dimensions that meet.

    Without a scale of its own the operator divides by the root of the width of a head, so that
    width has to stay as it is, and whole heads go. With grouped queries, a head of keys and values goes
    together with the heads of queries that it serves.
    """
    query, key, value = (site.value(name) for name in ("query", "key", "value"))
    if site.option("scale") is None:
        for item in (query, key, value):
            site.object(item.labels[-1])
    width = site.join(query.labels[-1], key.labels[-1])
    if site.option("scale") is None:
        site.freeze(width, f"the scale of attention depends on the width of a head ({site.place})")
    else:
        site.read("query", -1, width)
    for labels in (query.labels[-2], key.labels[-2], value.labels[-2]):
        site.freeze(labels, f"used as a position of attention ({site.place})")
    lead = site.shape[:-2]
    stacks = [Value(item.shape[:-2], item.labels[:-2]) for item in (query, key, value)]
    if site.option_or("enable_gqa", False):
        stacks = [stacks[0], *(_shared_heads(stack, lead[-1]) for stack in stacks[1:])]
    if site.has("attn_mask"):
        stacks.append(_mask(site))
    joined = combine(site, stacks, lead)
    outgoing = value.labels[-1]
    if joined.labels and joined.labels[-1] is not None and outgoing is not None:
        site.freeze(outgoing, f"whole heads are removed ({site.place})")
        outgoing = None
    positions = query.shape[-2] * key.shape[-2]
    extents = [_extent(size, labels) for size, labels in zip(lead, joined.labels, strict=True)]
    site.work(positions, *extents, _extent(query.shape[-1], width))
    site.work(positions, *extents, _extent(value.shape[-1], outgoing))
    return Value(site.shape, (*joined.labels, None, outgoing))


def _shared_heads(stack: Value, heads: int) -> Value:
    """Heads of keys or values as the queries see them: each serves as many queries as come to it."""
    own, count = stack.labels[-1], stack.shape[-1]
    if count == 1:  # one head, which any number of queries share
        return stack
    served = None if own is None else np.repeat(own, heads // count)
    return Value((*stack.shape[:-1], heads), (*stack.labels[:-1], served))


def _mask(site: Site) -> Value:
    """The mask or bias without its positions."""
    mask = site.value("attn_mask")
    for labels in mask.labels[-2:]:
        site.freeze(labels, f"used as a position of attention ({site.place})")
    return Value(mask.shape[:-2], mask.labels[:-2])


def _extent(size: int, labels: Labels) -> Labels | int:
    return size if labels is None else labels
