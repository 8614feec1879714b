"""Propagate labels through sampling of images at computed coordinates, the same for all channels."""

from __future__ import annotations

from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(op: RuleContext) -> Value:
    """Keep the channels; spatial dimensions and the coordinates are frozen.

    Heads with separate coordinates are counted with the examples, as in a product.
    """
    value, grid = op.value("input"), op.value("grid")
    op.record_product(value, grid, [(0, 0)])
    reason = f"used as a position in an image ({op.place})"
    for labels in (*value.labels[2:], *grid.labels[1:]):
        op.freeze(labels, reason)
    batch = op.join(value.labels[0], grid.labels[0])
    return Value(op.shape, (batch, value.labels[1], *(None,) * (len(op.shape) - 2)))


@rule("aten.affine_grid_generator")
def affine_grid(op: RuleContext) -> Value:
    """Generate coordinates; the number of channels in ``size`` does not change the result."""
    theta = op.value("theta")
    for labels in theta.labels[1:]:
        op.freeze(labels, f"used as an affine map ({op.place})")
    return Value(op.shape, (theta.labels[0], *(None,) * (len(op.shape) - 1)))
