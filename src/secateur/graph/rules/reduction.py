"""Reductions and soft-maxima: over positions they hand channels on, over channels they read them all."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.rules.elementwise import combine
from secateur.graph.site import Site

REDUCTIONS = """
    mean nanmean sum nansum prod any all count_nonzero logsumexp special_logsumexp amax amin aminmax var std
    var_mean std_mean norm linalg_norm linalg_vector_norm linalg_matrix_norm
"""

_BY_VALUE = {"max", "min", "median", "nanmedian"}
"""Operators that return values and indices."""


@rule(*(f"aten.{name}" for name in REDUCTIONS.split()))
def reduce(site: Site) -> Value | Sequence[Value]:
    """Reduced dimensions vanish; where they held channels, the statistic is over the kept ones."""
    return reduced(site, _dims(site, len(site.first().shape)))


@rule(*(f"aten.{name}" for name in sorted(_BY_VALUE)))
def extreme(site: Site) -> Value | Sequence[Value]:
    """Reduce to an extreme or the median; channels are frozen if the returned indices are used."""
    if site.has("other"):  # the larger of two tensors, index by index
        return combine(site, [site.value("self"), site.value("other")], site.shape)
    value = site.first()
    dims = _dims(site, len(value.shape))
    if is_used(site, 1):
        for dim in dims:
            site.freeze(value.labels[dim], f"the index of a channel is used as a value ({site.place})")
    return reduced(site, dims)


def reduced(site: Site, dims: set[int]) -> Value | Sequence[Value]:
    """Build the result of a reduction of the first argument.

    Args:
        site: the operator.
        dims: the dimensions that are reduced.

    Returns:
        One value, or one for each result; all have the same labels.
    """
    value = site.first()
    keep = bool(site.option_or("keepdim", False))
    labels = tuple(
        None if dim in dims else own for dim, own in enumerate(value.labels) if keep or dim not in dims
    )
    several = isinstance(site.node.meta["val"], Sequence)
    over_channels = any(value.labels[dim] is not None for dim in dims)
    if several:
        site.statistic_along("self", dims)
        return [Value(shape, labels) for shape in site.shapes]
    result = Value(site.shape, labels)
    return site.statistic(result) if over_channels else result


@rule(
    "aten.softmax",
    "aten.log_softmax",
    "aten._softmax",
    "aten._log_softmax",
    "aten._safe_softmax",
    "aten.special_softmax",
    "aten.special_log_softmax",
)
def softmax(site: Site) -> Value:
    """Over positions element-wise as far as channels go; over channels a statistic of the kept ones."""
    value = site.first()
    if not value.shape:
        return value
    dim = site.option("dim") % len(value.shape)
    return site.statistic(value) if value.labels[dim] is not None else value


@rule("aten.embedding_renorm")
def embedding_renorm(site: Site) -> Value:
    """Limit the norm of each row of a table, a statistic over its columns."""
    table = site.first()
    site.freeze(table.labels[0], f"rows are picked by an index tensor ({site.place})")
    return site.statistic(table) if table.labels[1] is not None else table


@rule("aten.renorm")
def renorm(site: Site) -> Value:
    """Scale each slice by its norm, a statistic over all other dimensions."""
    value = site.first()
    dim = site.option("dim") % len(value.shape)
    others = [own for place, own in enumerate(value.labels) if place != dim]
    return site.statistic(value) if any(own is not None for own in others) else value


@rule(
    "aten.mse_loss",
    "aten.l1_loss",
    "aten.smooth_l1_loss",
    "aten.huber_loss",
    "aten.soft_margin_loss",
    "aten.binary_cross_entropy",
    "aten.binary_cross_entropy_with_logits",
    "aten.kl_div",
    "aten.dist",
)
def loss(site: Site) -> Value:
    """Join all tensors; a reduced loss is a statistic over all channels."""
    operands = site.tensors()
    together = combine(site, operands, tuple(torch.broadcast_shapes(*(item.shape for item in operands))))
    if site.option_or("reduction", 1) == 0:
        return together
    labelled: list[Labels] = [own for own in together.labels if own is not None]
    return site.statistic(Value.plain(site.shape)) if labelled else Value.plain(site.shape)


def is_used(site: Site, place: int) -> bool:
    """Return whether one of several results of an operator is used.

    Args:
        site: the operator.
        place: which result.
    """
    return any(
        user.target is operator.getitem and user.args[1] == place and bool(user.users)
        for user in site.node.users
    )


def _dims(site: Site, count: int) -> set[int]:
    """Return the reduced dimensions; without ``dim``, all of them."""
    dims = site.option_or("dim", None)
    if dims is None or not count:
        return set(range(count))
    listed = dims if isinstance(dims, Sequence) else [dims]
    return {dim % count for dim in listed} or set(range(count))
