"""Fake quantisation, with one scale per tensor or one per channel."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule(
    "aten.fake_quantize_per_tensor_affine",
    "aten._fake_quantize_learnable_per_tensor_affine",
    "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
)
def per_tensor(site: Site) -> Value:
    """Keep the labels: element-wise with one scale."""
    return Value(site.shape, site.first().labels)


@rule("aten.fake_quantize_per_channel_affine", "aten._fake_quantize_learnable_per_channel_affine")
def per_channel(site: Site) -> Value:
    """Carry scale and zero point along one dimension."""
    value = site.first()
    labels = value.labels[site.option("axis") % len(value.shape)]
    for name in ("scale", "zero_point"):
        site.carry(name, labels)
    return value


@rule("aten.fused_moving_avg_obs_fake_quant")
def observed(site: Site) -> Value:
    """Keep the labels if the observer is disabled; an enabled one updates its range from all channels."""
    value = site.first()
    axis = site.option("ch_axis")
    labels: Labels = value.labels[axis % len(value.shape)] if site.option("per_row_fake_quant") else None
    if labels is not None:
        for name in ("running_min", "running_max", "scale", "zero_point"):
            if site.value(name).shape == (len(labels),):
                site.carry(name, labels)
    if _observes(site.owner()):
        reason = (
            "an enabled quantisation observer updates its range from all channels in every pass; "
            f"disable it (torch.ao.quantization.disable_observer) or prune before preparing ({site.place})"
        )
        for own in value.labels:
            site.freeze(own, reason)
    return value


def _observes(module: nn.Module | None) -> bool:
    """Return whether the observer of a module is enabled; without a flag it counts as enabled."""
    flag = getattr(module, "observer_enabled", None)
    return not isinstance(flag, Tensor) or bool(flag.any())
