"""Weights that are computed from other tensors."""

from __future__ import annotations

from secateur.graph.groups import Role
from secateur.graph.labels import Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule("aten._weight_norm")
def weight_norm(site: Site) -> Value:
    """Directions, normalised over all dimensions but one, times a length for each index of that one."""
    direction, length = site.value("v"), site.value("g")
    dim = site.option("dim") % len(direction.shape)
    site.claim(length.labels[dim], Role.CARRIER)
    site.join(direction.labels[dim], length.labels[dim])
    return site.statistic(direction)
