"""Normalisations: per channel (batch, instance) and over channels (layer, group)."""

from __future__ import annotations

from secateur.graph.labels import Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule("aten.batch_norm", "aten.instance_norm")
def per_channel(site: Site) -> Value:
    """Each channel has its own scale, shift and statistics."""
    value = site.value("input")
    labels = value.labels[1] if len(value.shape) > 1 else None
    for other in (*value.labels[:1], *value.labels[2:]):
        site.freeze(other, f"a statistic over positions is taken over these channels ({site.place})")
    for name in ("weight", "bias", "running_mean", "running_var"):
        site.carry(name, labels)
    site.attribute("num_features", labels)
    return value


@rule("aten.layer_norm", "aten.rms_norm")
def layer_norm(site: Site) -> Value:
    """Statistics over the last dimensions, then a scale and perhaps a shift per index."""
    value = site.value("input")
    dims = len(site.option("normalized_shape"))
    sizes = []
    site.settle(value.labels[len(value.shape) - dims :], value.shape[len(value.shape) - dims :])
    for offset in range(dims):
        labels = value.labels[len(value.shape) - dims + offset]
        for name in ("weight", "bias"):
            site.carry(name, labels, offset)
        site.attribute("normalized_shape", labels, offset)
        if labels is not None:
            sizes.append((1, offset, labels))
    return site.statistic(value, *sizes) if sizes else value


@rule("aten.group_norm")
def group_norm(site: Site) -> Value:
    """Statistics within equal chunks of the channels; whole chunks go, or the same place in each."""
    value = site.value("input")
    labels, groups = value.labels[1], int(site.option("num_groups"))
    for name in ("weight", "bias"):
        site.carry(name, labels)
    site.attribute("num_channels", labels)
    if labels is None:
        return value
    if groups == 1:
        return site.statistic(value)
    square = labels.reshape(groups, -1)
    if site.choose(square.shape) == 0:
        for place in range(1, square.shape[1]):
            site.join(square[:, place], square[:, 0])
        if any(site.sources):
            site.settle([square[:, 0]], [groups])
        elif not site.attribute("num_groups", square[:, 0]):
            site.freeze(labels, f"the number of groups is fixed in code ({site.place})")
        return site.statistic(value, (1, None, square[:, 0]))
    site.settle([None], [groups])
    for index in range(1, groups):
        site.join(square[index], square[0])
    return site.statistic(value)
