"""Pooling, resampling and other operators that work on positions, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.labels import Value
from secateur.graph.rules import rule
from secateur.graph.rules.reduction import is_used
from secateur.graph.site import Site

_POOLS = """
    max_pool{n}d avg_pool{n}d adaptive_avg_pool{n}d adaptive_max_pool{n}d max_pool{n}d_with_indices
    lp_pool{n}d upsample_nearest{n}d _upsample_nearest_exact{n}d reflection_pad{n}d replication_pad{n}d
    fractional_max_pool{n}d
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
        whole = _whole(site, value, spatial)
        if whole:
            site.statistic_along("self", whole)
        for dim in set(range(len(value.shape) - spatial, len(value.shape))) - whole:
            reason = f"neighbouring channels are pooled together, so their order counts ({site.place})"
            site.freeze(value.labels[dim], reason)
        kept = value.labels[: len(value.shape) - spatial]
        result = Value(site.shape, (*kept, *(None,) * spatial))
        several = isinstance(site.node.meta["val"], Sequence)
        return [result] * len(site.shapes) if several else result


def _whole(site: Site, value: Value, spatial: int) -> set[int]:
    """Return the dimensions of channels that adaptive pooling reduces to size one."""
    if not site.operator.startswith("adaptive_") or is_used(site, 1):
        return set()
    dims = range(len(value.shape) - spatial, len(value.shape))
    return {dim for dim in dims if value.labels[dim] is not None and site.shape[dim] == 1}


for _spatial in (1, 2, 3):
    _per_position(_spatial)


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def unpool(site: Site) -> Value:
    """Join values and indices per channel; spatial dimensions are frozen."""
    spatial = 3 if site.operator.endswith("3d") else 2
    value, places = site.value("self"), site.value("indices")
    lead = len(value.shape) - spatial
    for item in (value, places):
        for labels in item.labels[lead:]:
            site.freeze(labels, f"used as a spatial dimension ({site.place})")
    kept = [
        site.join(one, other) for one, other in zip(value.labels[:lead], places.labels[:lead], strict=True)
    ]
    return Value(site.shape, (*kept, *(None,) * spatial))
