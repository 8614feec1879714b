"""Regularise scores by what channels cost, so that expensive channels must matter more to be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from secateur.criteria.scores import Scores
from secateur.errors import UsageError

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph

CostKind = Literal["params", "macs", "bytes", "memory"]
"""The costs of a channel, in the order of the cost model's columns."""


def regularize_scores(
    scores: Scores, graph: ChannelGraph, per: CostKind = "macs", lam: float = 1e-3
) -> Scores:
    """Regularise scores by what the channels cost.

    The cost c of a channel is what the network needs less when its group has one channel
    fewer, in millions (of parameters, MACs per example, bytes). The result is ``score - lam * c``, the FLOPs
    regularisation of Molchanov et al. (arXiv 1611.06440, section 2.2), with lambda = 1e-3; it may
    be negative.

    Use normalised scores, ``regularize_scores(scores.normalized("l2"), graph)``, and do not normalise again.

    Args:
        scores: scores of the groups.
        graph: the channel graph that they were computed for.
        per: ``"params"``, ``"macs"``, ``"bytes"`` or ``"memory"``.
        lam: score per million.

    Returns:
        Regularised scores.

    Raises:
        UsageError: ``per`` is unknown, or ``lam`` is not a finite number.

    >>> import torch
    >>> from torch import nn
    >>> from secateur.graph import trace
    >>> graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3))
    >>> print(regularize_scores(Scores("equal", {"0": torch.ones(4)}), graph, "params", lam=1000.0)["0"])
    tensor([0.9940, 0.9940, 0.9940, 0.9940])
    """
    if per not in get_args(CostKind):
        raise UsageError(f"per is one of {', '.join(get_args(CostKind))}, not {per!r}")
    if not np.isfinite(lam):
        raise UsageError(f"lam is a finite number, not {lam}")
    costs = channel_costs(graph, per)
    values = {name: scores[name] - lam * costs[name] for name in scores}
    return Scores(f"{scores.criterion} - {lam:g} per million {per}", values, scores.unscored)


def channel_costs(graph: ChannelGraph, per: CostKind) -> dict[str, float]:
    """Compute what one channel of each prunable group costs, in millions.

    Args:
        graph: the channel graph.
        per: the kind of cost.

    Returns:
        By group name, how much the cost falls when the group has one channel fewer.
    """
    numbers = [number for number, group in enumerate(graph.groups) if group.prunable]
    widths = np.array([[group.channels for group in graph.groups]] * (len(numbers) + 1), dtype=np.int64)
    widths[np.arange(len(numbers)), numbers] -= 1
    costs = graph.cost_model.evaluate(widths)[:, get_args(CostKind).index(per)]
    saved = (costs[-1] - costs[:-1]) / 1e6
    return {graph.groups[number].name: float(cost) for number, cost in zip(numbers, saved, strict=True)}
