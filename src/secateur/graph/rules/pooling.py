"""Pooling, resampling and other operators that work on positions, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.labels import Value
from secateur.graph.rules import rule
from secateur.graph.site import Site

_POOLS = """
    max_pool{n}d avg_pool{n}d adaptive_avg_pool{n}d adaptive_max_pool{n}d max_pool{n}d_with_indices
    lp_pool{n}d upsample_nearest{n}d _upsample_nearest_exact{n}d reflection_pad{n}d replication_pad{n}d
"""
_RESAMPLINGS = {
    1: "upsample_linear1d",
    2: "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    3: "upsample_trilinear3d",
}


def _per_position(spatial: int) -> None:
    names = f"{_POOLS.format(n=spatial)} {_RESAMPLINGS[spatial]}"

    @rule(*(f"aten.{name}" for name in names.split()))
    def positions(site: Site) -> Value | Sequence[Value]:
        value = site.first()
        for dim in range(len(value.shape) - spatial, len(value.shape)):
            site.freeze(value.labels[dim], f"used as a spatial dimension ({site.place})")
        kept = value.labels[: len(value.shape) - spatial]
        result = Value(site.shape, (*kept, *(None,) * spatial))
        several = isinstance(site.node.meta["val"], Sequence)
        return [result] * len(site.shapes) if several else result


for _spatial in (1, 2, 3):
    _per_position(_spatial)
