"""Cost charges: a channel that is dear to keep has to be worth more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from secateur.criteria.scores import Scores
from secateur.errors import UsageError

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph

Charge = Literal["params", "macs", "bytes", "memory"]
"""What a channel is charged for, in the order of the cost model's columns."""


def charged(scores: Scores, graph: ChannelGraph, per: Charge = "macs", lam: float | None = 1e-3) -> Scores:
    """Scores charged for what the channels cost.

    With c the cost of a channel, what the network needs less when its group has one channel
    fewer, in millions (of parameters, MACs per example, bytes):

    - ``score - lam * c``, as Molchanov et al. (arXiv 1611.06440) charge Taylor scores, with
      lambda = 1e-3; it may be negative;
    - ``score / c`` with ``lam=None``. Groups whose channels cost nothing are left out then.

    Charge normalised scores, ``charged(scores.normalized("l2"), graph)``, and do not normalise again.

    Args:
        scores: scores of the groups.
        graph: the channel graph that they were made for.
        per: ``"params"``, ``"macs"``, ``"bytes"`` or ``"memory"``.
        lam: how much a million costs in units of score; ``None`` to divide.

    Returns:
        Charged scores.

    Raises:
        UsageError: if ``per`` is unknown or ``lam`` is no finite number.

    >>> import torch
    >>> from torch import nn
    >>> from secateur.graph import trace
    >>> graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3))
    >>> print(charged(Scores("equal", {"0": torch.ones(4)}), graph, "params", lam=1000.0)["0"])
    tensor([0.9940, 0.9940, 0.9940, 0.9940])
    """
    if per not in get_args(Charge):
        raise UsageError(f"channels are charged per {', '.join(get_args(Charge))}, not per {per!r}")
    if lam is not None and not np.isfinite(lam):
        raise UsageError(f"lam is a finite number or None, not {lam}")
    price = channel_costs(graph, per)
    if lam is not None:
        values = {name: scores[name] - lam * price[name] for name in scores}
        return Scores(f"{scores.criterion} - {lam:g} per million {per}", values, scores.unscored)
    free = {name: f"its channels cost no {per}" for name in scores if not price[name] > 0}
    values = {name: scores[name] / price[name] for name in scores if name not in free}
    return Scores(f"{scores.criterion} per million {per}", values, {**scores.unscored, **free})


def channel_costs(graph: ChannelGraph, per: Charge) -> dict[str, float]:
    """What one channel of each prunable group costs, in millions.

    Args:
        graph: the channel graph.
        per: the kind of cost.

    Returns:
        By group name, how much the cost falls when the group has one channel fewer.
    """
    numbers = [number for number, group in enumerate(graph.groups) if group.prunable]
    widths = np.array([[group.channels for group in graph.groups]] * (len(numbers) + 1), dtype=np.int64)
    widths[np.arange(len(numbers)), numbers] -= 1
    costs = graph.cost_model.evaluate(widths)[:, get_args(Charge).index(per)]
    saved = (costs[-1] - costs[:-1]) / 1e6
    return {graph.groups[number].name: float(cost) for number, cost in zip(numbers, saved, strict=True)}
