"""Propagate labels through pooling, resampling and others that compute each channel alone."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule
from secateur.graph.rules.reduction import is_used

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
    def positions(op: RuleContext) -> Value | Sequence[Value]:
        value = op.first()
        whole = _whole(op, value, spatial)
        if whole:
            op.statistic_along("self", whole)
        alone = _alone(op, value, spatial)
        for dim in set(range(len(value.shape) - spatial, len(value.shape))) - whole - alone:
            reason = f"neighbouring channels are pooled together, so their order counts ({op.place})"
            op.freeze(value.labels[dim], reason)
        lead = len(value.shape) - spatial
        labels = [own if dim < lead or dim in alone else None for dim, own in enumerate(value.labels)]
        result = Value(op.shape, tuple(labels))
        return [result] * len(op.shapes) if op.has_several_results else result


def _whole(op: RuleContext, value: Value, spatial: int) -> set[int]:
    """Return the dimensions of channels that adaptive pooling reduces to size one."""
    if not op.operator.startswith("adaptive_") or is_used(op, 1):
        return set()
    dims = range(len(value.shape) - spatial, len(value.shape))
    return {dim for dim in dims if value.labels[dim] is not None and op.shape[dim] == 1}


def _alone(op: RuleContext, value: Value, spatial: int) -> set[int]:
    """Return the dimensions along which windows are one wide, so that no neighbours meet."""
    if op.option_or("kernel_size", None) is None or op.operator.startswith("fractional_"):
        return set()
    if op.operator.endswith("with_indices") and is_used(op, 1):
        return set()  # places in the whole plane

    def per_dim(name: str, default: Sequence[int]) -> list[int]:
        given = op.option_or(name, None)
        given = [given] if isinstance(given, int) else list(given or default)
        return given * spatial if len(given) == 1 else given

    kernel = per_dim("kernel_size", [])
    windows = zip(kernel, per_dim("stride", kernel), per_dim("padding", [0]), strict=True)
    lead = len(value.shape) - spatial
    return {lead + place for place, window in enumerate(windows) if window == (1, 1, 0)}


for _spatial in (1, 2, 3):
    _per_position(_spatial)


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def unpool(op: RuleContext) -> Value:
    """Join values and indices per channel; spatial dimensions are frozen."""
    spatial = 3 if op.operator.endswith("3d") else 2
    value, places = op.value("self"), op.value("indices")
    lead = len(value.shape) - spatial
    for item in (value, places):
        for labels in item.labels[lead:]:
            op.freeze(labels, f"used as a spatial dimension ({op.place})")
    kept = [op.join(one, other) for one, other in zip(value.labels[:lead], places.labels[:lead], strict=True)]
    return Value(op.shape, (*kept, *(None,) * spatial))
