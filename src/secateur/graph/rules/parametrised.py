"""Propagate labels through weights that are computed from other tensors."""

from __future__ import annotations

from secateur.graph.groups import Role
from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


@rule("aten._weight_norm")
def weight_norm(op: RuleContext) -> Value:
    """Multiply a direction, normalised over all dimensions but one, by a length for each index of that one.

    The length of what is cut follows, so that the weight of what stays is the same number.
    """
    direction, length = op.value("v"), op.value("g")
    whole = op.option("dim") == -1  # PyTorch's sign for one norm of the whole weight
    dim = None if whole else op.option("dim") % len(direction.shape)
    if dim is not None:
        op.set_role(length.labels[dim], Role.CARRIER)
        op.join(direction.labels[dim], length.labels[dim])
    if not op.rescale("g", "v", dim):
        for place, labels in enumerate(direction.labels):
            if place != dim:
                op.freeze(labels, f"a computed weight is normalised over these channels ({op.place})")
    return direction
