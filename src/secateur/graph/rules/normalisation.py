"""Propagate labels through normalisations: per channel (batch, instance) and over channels (layer, group)."""

from __future__ import annotations

from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


@rule("aten.batch_norm", "aten.instance_norm")
def per_channel(op: RuleContext) -> Value:
    """Tie scale, shift and statistics to each channel."""
    value = op.value("input")
    labels = value.labels[1] if len(value.shape) > 1 else None
    for other in (*value.labels[:1], *value.labels[2:]):
        op.freeze(other, f"a statistic over positions is taken over these channels ({op.place})")
    for name in ("weight", "bias", "running_mean", "running_var"):
        op.tie_parameter(name, labels)
    op.attribute("num_features", labels)
    return value


@rule("aten.layer_norm", "aten.rms_norm")
def layer_norm(op: RuleContext) -> Value:
    """Normalise over the last dimensions, then apply a scale and perhaps a shift per index."""
    value = op.value("input")
    dims = len(op.option("normalized_shape"))
    sizes = []
    op.constrain_sizes(value.labels[len(value.shape) - dims :], value.shape[len(value.shape) - dims :])
    for offset in range(dims):
        labels = value.labels[len(value.shape) - dims + offset]
        for name in ("weight", "bias"):
            op.tie_parameter(name, labels, offset)
        op.attribute("normalized_shape", labels, offset)
        if labels is not None:
            sizes.append((1, offset, labels))
    return op.statistic(value, *sizes) if sizes else value


@rule("aten.group_norm")
def group_norm(op: RuleContext) -> Value:
    """Normalise within equal chunks of the channels; whole chunks go, or the same place in each."""
    value = op.value("input")
    labels, groups = value.labels[1], int(op.option("num_groups"))
    for name in ("weight", "bias"):
        op.tie_parameter(name, labels)
    op.attribute("num_channels", labels)
    if labels is None:
        return value
    if groups == 1:
        return op.statistic(value)
    square = labels.reshape(groups, -1)
    if op.free_axis(square.shape) == 0:
        op.join_rows(square.T)
        op.count_groups("num_groups", square[:, 0], labels)
        return op.statistic(value, (1, None, square[:, 0]))
    op.constrain_sizes([None], [groups])
    op.join_rows(square)
    return op.statistic(value)
