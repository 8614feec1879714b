"""Weights that are computed from other tensors."""

from __future__ import annotations

from secateur.graph.groups import Role
from secateur.graph.labels import Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule("aten._weight_norm")
def weight_norm(site: Site) -> Value:
    """Directions, normalised over all dimensions but one, times a length for each index of that one.

    The length of what is cut follows, so that the weight of what stays is the same number.
    """
    direction, length = site.value("v"), site.value("g")
    whole = site.option("dim") == -1  # PyTorch's sign for one norm of the whole weight
    dim = None if whole else site.option("dim") % len(direction.shape)
    if dim is not None:
        site.claim(length.labels[dim], Role.CARRIER)
        site.join(direction.labels[dim], length.labels[dim])
    if not site.rescale("g", "v", dim):
        for place, labels in enumerate(direction.labels):
            if place != dim:
                site.freeze(labels, f"a computed weight is normalised over these channels ({site.place})")
    return direction
