"""Propagate labels through products of rows with one of several matrices, as in mixtures of experts."""

from __future__ import annotations

from secateur.graph.capture.nodes import named_arguments
from secateur.graph.groups import Role
from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule

_STRIDE_BYTES = 16
"""Rows of the factors begin at multiples of so many bytes; other widths are refused by the operator."""


@rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped_product(op: RuleContext) -> Value | list[Value]:
    """Contract each run of rows with the matrix of its expert.

    Experts are channels where the ends of the runs are counted from their places. The operator takes only
    widths of which a row fills a multiple of 16 bytes, so channels go in runs. The second name is what
    ``transformers`` puts in its place during a capture.
    """
    names = list(named_arguments(op.node))
    left, right = op.value(names[0]), op.value(names[1])
    if len(left.shape) != 2 or len(right.shape) != 3:
        return op.refuse("a grouped product in a form that is not supported")
    op.freeze(left.labels[0], f"rows are assigned to experts ({op.place})")
    ends = op.value("offs").labels[0] if op.has("offs") else None
    op.set_role(right.labels[0], Role.CARRIER)
    op.join(right.labels[0], ends, f"experts are chosen by their place ({op.place})")
    incoming, outgoing = right.labels[1], right.labels[2]
    op.set_role(incoming, Role.CONSUMER)
    op.set_role(outgoing, Role.PRODUCER)
    op.join(left.labels[1], incoming, f"reads values that are not channels ({op.place})")
    op.read(names[0], -1, left.labels[1])
    step = _STRIDE_BYTES // op.node.args[1].meta["val"].element_size()  # type: ignore[union-attr]
    for labels in (incoming, outgoing):
        if labels is not None and len(labels) % step == 0:
            op.join_rows(labels.reshape(-1, step).T)
    op.add_macs(left.shape[0], *right.extents[1:])
    return Value(op.shape, (None, outgoing))
