"""Sampling of images at computed coordinates, the same for all channels."""

from __future__ import annotations

from secateur.graph.labels import Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(site: Site) -> Value:
    """Keep the channels; spatial dimensions and the coordinates are frozen."""
    value, grid = site.value("input"), site.value("grid")
    reason = f"used as a position in a picture ({site.place})"
    for labels in (*value.labels[2:], *grid.labels[1:]):
        site.freeze(labels, reason)
    batch = site.join(value.labels[0], grid.labels[0])
    return Value(site.shape, (batch, value.labels[1], *(None,) * (len(site.shape) - 2)))


@rule("aten.affine_grid_generator")
def affine_grid(site: Site) -> Value:
    """Generate coordinates; the number of channels in ``size`` does not change the result."""
    theta = site.value("theta")
    for labels in theta.labels[1:]:
        site.freeze(labels, f"used as an affine map ({site.place})")
    return Value(site.shape, (theta.labels[0], *(None,) * (len(site.shape) - 1)))
