"""Operators that move contents between channels and positions, or shuffle channels."""

from __future__ import annotations

import math

import numpy as np

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule("aten.pixel_shuffle")
def pixel_shuffle(site: Site) -> Value:
    """Each run of r² channels becomes one channel of more pixels."""
    value = site.first()
    return _gathered(site, value, len(value.shape) - 3, int(site.option("upscale_factor")) ** 2)


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(site: Site) -> Value:
    """Each channel becomes r² channels of fewer pixels."""
    value = site.first()
    return _spread(site, value, len(value.shape) - 3, int(site.option("downscale_factor")) ** 2)


@rule("aten.im2col")
def im2col(site: Site) -> Value:
    """Patches are laid out as channels: each channel becomes one per place in the patch."""
    value = site.first()
    return _spread(site, value, len(value.shape) - 3, math.prod(site.option("kernel_size")))


@rule("aten.col2im")
def col2im(site: Site) -> Value:
    """Patches laid out as channels are added up to a picture."""
    value = site.first()
    return _gathered(site, value, len(value.shape) - 2, math.prod(site.option("kernel_size")))


def _gathered(site: Site, value: Value, dim: int, run: int) -> Value:
    """Each run of channels becomes one: the run goes together."""
    labels = _channels(site, value, dim)
    if labels is not None:
        rows = labels.reshape(-1, run)
        for place in range(1, run):
            site.join(rows[:, place], rows[:, 0])
        labels = np.ascontiguousarray(rows[:, 0])
    return _with_channels(site, value, dim, labels)


def _spread(site: Site, value: Value, dim: int, run: int) -> Value:
    """Each channel becomes a run of channels."""
    labels = _channels(site, value, dim)
    return _with_channels(site, value, dim, None if labels is None else np.repeat(labels, run))


def _channels(site: Site, value: Value, dim: int) -> Labels:
    for space in range(dim + 1, len(value.shape)):
        site.freeze(value.labels[space], f"used as a spatial dimension ({site.place})")
    return value.labels[dim]


def _with_channels(site: Site, value: Value, dim: int, labels: IntArray | None) -> Value:
    rest = (None,) * (len(site.shape) - dim - 1)
    return Value(site.shape, (*value.labels[:dim], labels, *rest))


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(site: Site) -> Value:
    """Groups are interleaved: the same place goes from every group."""
    value = site.first()
    labels = value.labels[1]
    if labels is None:
        return value
    square = labels.reshape(int(site.option("groups")), -1)
    for row in square[1:]:
        site.join(row, square[0])
    return value.replaced(1, np.ascontiguousarray(square.T).ravel())


@rule("aten.unfold")
def unfold(site: Site) -> Value:
    """Windows along a dimension: positions, not channels; a new dimension comes last."""
    value = site.first()
    dim = site.option("dimension") % len(value.shape)
    site.freeze(value.labels[dim], f"used as a spatial dimension ({site.place})")
    return Value(site.shape, (*value.labels[:dim], None, *value.labels[dim + 1 :], None))
