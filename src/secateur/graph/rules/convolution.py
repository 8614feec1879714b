"""Propagate labels through convolutions: plain, grouped, depthwise and transposed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.graph.groups import IntArray, Role
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(op: RuleContext) -> Value:
    """Contract input channels with weight dimension 1, return weight dimension 0."""
    value, weight = op.value("input"), op.value("weight")
    dim = len(value.shape) - len(weight.shape) + 1
    incoming, groups = value.labels[dim], int(op.option("groups"))
    space = _space(op, value, dim)
    if groups == 1:
        outgoing = _plain(op, incoming, weight, dim)
    else:
        outgoing = _grouped(op, incoming, weight, dim, groups)
    op.tie_parameter("bias", outgoing)
    op.attribute("out_channels", outgoing)
    op.attribute("in_channels", incoming)
    result = Value(op.shape, (*value.labels[:dim], outgoing, *space))
    op.add_macs(math.prod(weight.shape[2:]), *_positions(result, dim), *weight.extents[:2])
    return result


def _plain(op: RuleContext, incoming: Labels, weight: Value, dim: int) -> Labels:
    op.set_role(weight.labels[1], Role.CONSUMER)
    op.set_role(weight.labels[0], Role.PRODUCER)
    op.join(incoming, weight.labels[1], op.why_no_channels("weight"))
    op.read("input", dim, incoming, "weight")
    return weight.labels[0]


def _grouped(op: RuleContext, incoming: Labels, weight: Value, dim: int, groups: int) -> Labels:
    """Remove whole groups, or the same place in every group: whichever leaves more units."""
    outgoing, inner = weight.labels[0], weight.labels[1]
    width_in, width_out = weight.shape[1], weight.shape[0] // groups
    if incoming is None or outgoing is None:
        op.freeze(outgoing, f"a grouped convolution of values that are not channels ({op.place})")
        op.freeze(incoming, f"a grouped convolution without a weight of its own ({op.place})")
        return outgoing
    rows = outgoing.reshape(groups, width_out)
    columns = incoming.reshape(groups, width_in)
    if op.free_axis((groups, min(width_in, width_out))) == 0:
        depthwise = width_in == 1
        op.set_role(outgoing, Role.CARRIER if depthwise else Role.PRODUCER)
        op.join_rows([*rows.T, *columns.T])
        op.count_groups("groups", rows[:, 0], outgoing)
        return outgoing
    op.set_role(inner, Role.CONSUMER)
    op.set_role(outgoing, Role.PRODUCER)
    op.constrain_sizes([None], [groups])
    op.join_rows([inner, *columns])
    op.join_rows(rows)
    op.read("input", dim, incoming, "weight")
    return outgoing


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed(op: RuleContext) -> Value:
    """Treat it as a convolution with the weight's first two dimensions exchanged."""
    value, weight = op.value("input"), op.value("weight")
    dim = len(value.shape) - len(weight.shape) + 1
    incoming = value.labels[dim]
    space = _space(op, value, dim)
    groups = int(op.option("groups"))
    op.join(incoming, weight.labels[0], op.why_no_channels("weight"))
    outgoing = _transposed_groups(op, weight, dim, groups) if groups > 1 else weight.labels[1]
    if groups == 1:
        op.set_role(weight.labels[0], Role.CONSUMER)
        op.set_role(weight.labels[1], Role.PRODUCER)
        op.read("input", dim, incoming, "weight")
    op.tie_parameter("bias", outgoing)
    op.attribute("out_channels", outgoing)
    op.attribute("in_channels", incoming)
    op.add_macs(math.prod(weight.shape[2:]), *_positions(value, dim), *weight.extents[:2])
    return Value(op.shape, (*value.labels[:dim], outgoing, *space))


@rule("aten.conv_tbc")
def channels_innermost(op: RuleContext) -> Value:
    """Contract channels that lie innermost with weight dimension 1, return weight dimension 2."""
    value, weight = op.value("self"), op.value("weight")
    steps, examples, incoming = value.labels
    outgoing = weight.labels[2]
    op.set_role(weight.labels[1], Role.CONSUMER)
    op.set_role(outgoing, Role.PRODUCER)
    op.join(incoming, weight.labels[1], op.why_no_channels("weight"))
    op.read("self", 2, incoming, "weight")
    op.tie_parameter("bias", outgoing)
    for labels in (steps, weight.labels[0]):
        op.freeze(labels, f"used as a spatial dimension ({op.place})")
    result = Value(op.shape, (None, examples, outgoing))
    op.add_macs(weight.shape[0], *result.extents[:2], *weight.extents[1:])
    return result


def _transposed_groups(op: RuleContext, weight: Value, dim: int, groups: int) -> Labels:
    """Remove whole groups, or the same place in every group, of the outputs and of the inputs."""
    incoming, outgoing = weight.labels[0], weight.labels[1]
    if incoming is None or outgoing is None:
        op.freeze(incoming, f"a grouped convolution without a weight of its own ({op.place})")
        op.freeze(outgoing, f"a grouped convolution without a weight of its own ({op.place})")
        return None
    width_in, width_out = len(incoming) // groups, len(outgoing)
    rows = incoming.reshape(groups, width_in)
    if op.free_axis((groups, min(width_in, width_out))) == 0:
        op.set_role(incoming, Role.CARRIER if width_in == 1 else Role.PRODUCER)
        op.join_rows(rows.T)
        op.count_groups("groups", rows[:, 0], incoming)
        return np.repeat(rows[:, 0], width_out)
    op.set_role(incoming, Role.CONSUMER)
    op.set_role(outgoing, Role.PRODUCER)
    op.constrain_sizes([None], [groups])
    op.join_rows(rows)
    op.read("input", dim, incoming, "weight")
    return np.tile(outgoing, groups)


def _space(op: RuleContext, value: Value, dim: int) -> list[Labels]:
    """Return the labels of the spatial dimensions: only a filter of one position keeps those."""
    found: list[Labels] = []
    for place, labels in enumerate(value.labels[dim + 1 :]):
        single = op.value("weight").shape[2 + place] == 1
        shift = [_at(op.option_or(name, 0), place) for name in ("stride", "padding", "output_padding")]
        if not single or shift not in ([1, 0, 0], [1, "valid", 0]):
            op.freeze(labels, f"used as a spatial dimension ({op.place})")
            labels = None
        found.append(labels)
    return found


def _at(option: Any, place: int) -> Any:
    """Return an option that is given for each spatial dimension, or once for all."""
    if not isinstance(option, Sequence) or isinstance(option, str):
        return option
    return option[place] if len(option) > 1 else option[0]


def _positions(value: Value, dim: int) -> list[IntArray | int]:
    """List every dimension but the channels."""
    return [*value.extents[:dim], *value.extents[dim + 1 :]]
