"""Propagate labels through fake quantisation, with one scale per tensor or one per channel."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


@rule(
    "aten.fake_quantize_per_tensor_affine",
    "aten._fake_quantize_learnable_per_tensor_affine",
    "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
)
def per_tensor(op: RuleContext) -> Value:
    """Keep the labels: element-wise with one scale."""
    return Value(op.shape, op.first().labels)


@rule("aten.fake_quantize_per_channel_affine", "aten._fake_quantize_learnable_per_channel_affine")
def per_channel(op: RuleContext) -> Value:
    """Carry scale and zero point along one dimension."""
    value = op.first()
    labels = value.labels[op.option("axis") % len(value.shape)]
    for name in ("scale", "zero_point"):
        op.tie_parameter(name, labels)
    return value


@rule("aten.fused_moving_avg_obs_fake_quant")
def observed(op: RuleContext) -> Value:
    """Keep the labels if the observer is disabled; an enabled one updates its range from all channels."""
    value = op.first()
    axis = op.option("ch_axis")
    labels: Labels = value.labels[axis % len(value.shape)] if op.option("per_row_fake_quant") else None
    if labels is not None:
        for name in ("running_min", "running_max", "scale", "zero_point"):
            if op.value(name).shape == (len(labels),):
                op.tie_parameter(name, labels)
    if _observes(op.owner()):
        reason = (
            "an enabled quantisation observer updates its range from all channels in every pass; "
            f"disable it (torch.ao.quantization.disable_observer) or prune before preparing ({op.place})"
        )
        for own in value.labels:
            op.freeze(own, reason)
    return value


def _observes(module: nn.Module | None) -> bool:
    """Return whether the observer of a module is enabled; without a flag it counts as enabled."""
    flag = getattr(module, "observer_enabled", None)
    return not isinstance(flag, Tensor) or bool(flag.any())
