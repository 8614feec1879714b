"""Convolutions: plain, grouped, depthwise and transposed, in one to three dimensions."""

from __future__ import annotations

import math

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(site: Site) -> Value:
    """Contract input channels with weight dimension 1, hand on weight dimension 0."""
    value, weight = site.value("input"), site.value("weight")
    dim = len(value.shape) - len(weight.shape) + 1
    incoming, groups = value.labels[dim], int(site.option("groups"))
    _leave_space_alone(site, value, dim)
    if groups == 1:
        outgoing = _plain(site, incoming, weight, dim)
    else:
        outgoing = _grouped(site, incoming, weight, dim, groups)
    site.carry("bias", outgoing)
    site.attribute("out_channels", outgoing)
    site.attribute("in_channels", incoming)
    result = Value.plain(site.shape).replaced(dim, outgoing)
    if dim == 1:
        result = result.replaced(0, value.labels[0])
    site.work(math.prod(weight.shape[2:]), *_positions(result, dim), _extent(weight, 0), _extent(weight, 1))
    return result


def _plain(site: Site, incoming: Labels, weight: Value, dim: int) -> Labels:
    site.claim(weight.labels[1], Role.CONSUMER)
    site.claim(weight.labels[0], Role.PRODUCER)
    site.join(incoming, weight.labels[1], f"reads values that are not channels ({site.place})")
    site.read("input", dim, incoming, "weight")
    return weight.labels[0]


def _grouped(site: Site, incoming: Labels, weight: Value, dim: int, groups: int) -> Labels:
    """Lose whole groups, or the same place in every group: whichever leaves more units."""
    outgoing, inner = weight.labels[0], weight.labels[1]
    width_in, width_out = weight.shape[1], weight.shape[0] // groups
    if incoming is None or outgoing is None:
        site.freeze(outgoing, f"a grouped convolution of values that are not channels ({site.place})")
        site.freeze(incoming, f"a grouped convolution without a weight of its own ({site.place})")
        return outgoing
    rows = outgoing.reshape(groups, width_out)
    columns = incoming.reshape(groups, width_in)
    if site.choose((groups, min(width_in, width_out))) == 0:
        depthwise = width_in == 1
        site.claim(outgoing, Role.CARRIER if depthwise else Role.PRODUCER)
        for place in range(width_in):
            site.join(columns[:, place], rows[:, 0])
        for place in range(1, width_out):
            site.join(rows[:, place], rows[:, 0])
        if any(site.sources):
            site.settle([rows[:, 0]], [groups])
        elif not site.attribute("groups", rows[:, 0]):
            site.freeze(outgoing, f"the number of groups is fixed in code ({site.place})")
        return outgoing
    site.claim(inner, Role.CONSUMER)
    site.claim(outgoing, Role.PRODUCER)
    site.settle([None], [groups])
    for index in range(groups):
        site.join(columns[index], inner)
        site.join(rows[index], rows[0])
    site.read("input", dim, incoming, "weight")
    return outgoing


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed(site: Site) -> Value:
    """As a convolution with the weight's first two dimensions exchanged."""
    value, weight = site.value("input"), site.value("weight")
    dim = len(value.shape) - len(weight.shape) + 1
    incoming = value.labels[dim]
    _leave_space_alone(site, value, dim)
    if int(site.option("groups")) != 1:
        reason = f"grouped transposed convolutions are left alone ({site.place})"
        site.freeze(incoming, reason)
        return Value.plain(site.shape)
    site.claim(weight.labels[0], Role.CONSUMER)
    site.claim(weight.labels[1], Role.PRODUCER)
    site.join(incoming, weight.labels[0], f"reads values that are not channels ({site.place})")
    site.read("input", dim, incoming, "weight")
    outgoing = weight.labels[1]
    site.carry("bias", outgoing)
    site.attribute("out_channels", outgoing)
    site.attribute("in_channels", incoming)
    site.work(math.prod(weight.shape[2:]), *_positions(value, dim), _extent(weight, 0), _extent(weight, 1))
    result = Value.plain(site.shape).replaced(dim, outgoing)
    return result.replaced(0, value.labels[0]) if dim == 1 else result


def _leave_space_alone(site: Site, value: Value, dim: int) -> None:
    for space in range(dim + 1, len(value.shape)):
        site.freeze(value.labels[space], f"used as a spatial dimension ({site.place})")


def _positions(value: Value, dim: int) -> list[Labels | int]:
    """Every dimension but the channels."""
    return [_extent(value, other) for other in range(len(value.shape)) if other != dim]


def _extent(value: Value, dim: int) -> Labels | int:
    labels = value.labels[dim]
    return value.shape[dim] if labels is None else labels
