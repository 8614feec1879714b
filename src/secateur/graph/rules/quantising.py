"""Fake quantisation: numbers are rounded to a grid, of one step for all or one for each channel."""

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
    """One step and one zero for all numbers."""
    return Value(site.shape, site.first().labels)


@rule("aten.fake_quantize_per_channel_affine", "aten._fake_quantize_learnable_per_channel_affine")
def per_channel(site: Site) -> Value:
    """A step and a zero for each index of one dimension."""
    value = site.first()
    labels = value.labels[site.option("axis") % len(value.shape)]
    for name in ("scale", "zero_point"):
        site.carry(name, labels)
    return value


@rule("aten.fused_moving_avg_obs_fake_quant")
def observed(site: Site) -> Value:
    """As above, once the observers are switched off; until then the step is measured anew in every pass."""
    value = site.first()
    axis = site.option("ch_axis")
    labels: Labels = value.labels[axis % len(value.shape)] if site.option("per_row_fake_quant") else None
    if labels is not None:
        for name in ("running_min", "running_max", "scale", "zero_point"):
            if site.value(name).shape == (len(labels),):
                site.carry(name, labels)
    if _observes(site.owner()):
        reason = (
            "an observer of quantisation measures the range of all channels together, in every pass; "
            f"switch it off (torch.ao.quantization.disable_observer) or prune before ({site.place})"
        )
        for own in value.labels:
            site.freeze(own, reason)
    return value


def _observes(module: nn.Module | None) -> bool:
    """Whether a module says that its observer is on; one that does not say is taken to observe."""
    flag = getattr(module, "observer_enabled", None)
    return not isinstance(flag, Tensor) or bool(flag.any())
