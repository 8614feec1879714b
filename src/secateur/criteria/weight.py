"""Score channels by their weights: no data, no passes.

The weights of a channel are those that produce it. Where several layers produce it together (a
residual stream) their weights are concatenated, so that it has one score. Where no tensor of more
than one dimension produces it, its consumers' weights are used instead.

Shapes: C channels of a group, W weights per channel.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur._compat import _BatchNorm
from secateur.criteria.base import Criterion, Needs, ObservedNetwork, Observer, register
from secateur.errors import UsageError
from secateur.graph.groups import Group, Member, Role
from secateur.ranks import Ranks


class DataFreeCriterion(Criterion):
    """A criterion that scores one group at a time from the network's tensors."""

    needs = Needs.NOTHING
    missing: ClassVar[str] = "it has no weights"
    """Why a group cannot be scored when :meth:`value` returns ``None``."""

    @abstractmethod
    def value(self, group: Group, network: ObservedNetwork) -> Tensor | None:
        """Score a group, shape ``(C,)``; ``None`` if it cannot be scored."""

    def of_branch(self, name: str) -> float | None:
        """Score a residual branch; ``None`` if the criterion scores channels only."""
        return None

    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that reads the weights when scores are computed."""
        return DataFreeObserver(self, network)


class DataFreeObserver(Observer):
    """Score the groups one after the other, from the current weights.

    Args:
        criterion: scores one group.
        network: the network and its layout.
    """

    def __init__(self, criterion: DataFreeCriterion, network: ObservedNetwork) -> None:
        self._criterion = criterion
        self._network = network

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Score all groups; every rank computes the same."""
        parts, unscored = [torch.zeros(0)], {}
        for group in self._network.layout.groups:
            with torch.no_grad():
                value = self._criterion.value(group, self._network)
            if value is None:
                unscored[group.name] = self._criterion.missing
                value = torch.zeros(group.channels)
            parts.append(value.cpu().float())
        branches = [self._criterion.of_branch(name) for name in self._network.layout.branches]
        parts.append(torch.tensor([math.nan if one is None else one for one in branches]))
        return torch.cat(parts), unscored


class WeightCriterion(DataFreeCriterion):
    """A criterion on the weights of a channel.

    A subclass has a ``name`` and computes the scores in :meth:`of_weights`.
    """

    @abstractmethod
    def of_weights(self, weights: Tensor) -> Tensor:
        """Score a group's channels.

        Args:
            weights: one row per channel, float32, shape ``(C, W)``.

        Returns:
            Shape ``(C,)``.
        """

    def value(self, group: Group, network: ObservedNetwork) -> Tensor | None:
        """Score a group by its producers' weights, or its consumers'."""
        rows = channel_weights(group, network.modules)
        return None if rows is None else self.of_weights(rows)


def tensor_of(member: Member, modules: Mapping[str, nn.Module]) -> Tensor:
    """Find the parameter or buffer of a member."""
    tensor = getattr(modules[member.module], member.tensor.rpartition(".")[2])
    assert isinstance(tensor, Tensor)
    return tensor


def rows_of(member: Member, tensor: Tensor) -> Tensor:
    """Select the values of each channel in a member's tensor, or in one of its shape, shape ``(C, W)``.

    >>> import numpy as np
    >>> member = Member("fc.weight", 0, Role.PRODUCER, np.array([[0], [2]]))
    >>> rows_of(member, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    tensor([[1., 2.],
            [5., 6.]])
    """
    slots = torch.from_numpy(member.slots).to(tensor.device)
    return tensor.detach().movedim(member.dim, 0)[slots].flatten(1)


def channel_weights(group: Group, modules: Mapping[str, nn.Module]) -> Tensor | None:
    """Concatenate the weights that produce each channel; if there are none, those that consume it.

    Returns:
        Float32, shape ``(C, W)``; ``None`` if there is neither.
    """
    for role in (Role.PRODUCER, Role.CONSUMER):
        rows = [
            rows_of(member, tensor).float()
            for member in group.roles(role)
            if (tensor := tensor_of(member, modules)).ndim > 1
        ]
        if rows:
            return torch.cat([row.to(rows[0].device) for row in rows], dim=1)
    return None


@register
@dataclass(frozen=True)
class Magnitude(WeightCriterion):
    """Lp norm of a channel's weights, (sum of abs(w)^p)^(1/p).

    Li et al., "Pruning Filters for Efficient ConvNets" (arXiv 1608.08710), with p = 1 there; with
    p = 2, as by default, it ranks within a group like the "minimum weight" of arXiv 1611.06440.

    Attributes:
        p: the order of the norm, positive; ``inf`` takes the largest weight.
    """

    p: float = 2.0
    name: ClassVar[str] = "magnitude"

    def __post_init__(self) -> None:
        if not self.p > 0:
            raise UsageError(f"the order p of a norm is positive, not {self.p}")

    def of_weights(self, weights: Tensor) -> Tensor:
        """Compute the norm of each row.

        >>> Magnitude().of_weights(torch.tensor([[3.0, 4.0]]))
        tensor([5.])
        """
        norms: Tensor = torch.linalg.vector_norm(weights, ord=self.p, dim=1)
        return norms


@register
class Fpgm(WeightCriterion):
    """Sum of the distances from a channel's weights to those of all channels of the group.

    He et al., "Filter Pruning via Geometric Median" (CVPR 2019, arXiv 1811.00250):
    channels near the geometric median can be replaced by the others.
    """

    name = "fpgm"

    def of_weights(self, weights: Tensor) -> Tensor:
        """Compute the sum of Euclidean distances to all rows.

        >>> Fpgm().of_weights(torch.tensor([[0.0], [1.0], [5.0]]))
        tensor([6., 5., 9.])
        """
        centred = weights - weights.mean(0)  # distances stay, rounding errors shrink
        return torch.cdist(centred, centred).sum(1)


@register
class Lamp(WeightCriterion):
    """Layer-adaptive magnitude: the channel's squared norm over that of all channels not smaller.

    Lee et al., "Layer-adaptive sparsity for the Magnitude-based Pruning" (ICLR 2021, arXiv
    2010.07611), for channels: squared norms take the place of squared weights, and
    equal ones count together. It compares across groups without normalisation.
    """

    name = "lamp"

    def of_weights(self, weights: Tensor) -> Tensor:
        """Divide squared norms, each by the sum of those that are at least as large.

        >>> Lamp().of_weights(torch.tensor([[1.0], [2.0], [1.0]])).tolist()
        [0.166..., 1.0, 0.166...]
        """
        squares = weights.double().square().sum(1)
        ranked, order = squares.sort(descending=True)
        sums = ranked.cumsum(0)
        last = torch.searchsorted(-ranked, -ranked, right=True) - 1  # the last of equal ones
        scores = torch.where(ranked > 0, ranked / sums[last], 0.0)
        return torch.empty_like(scores).index_copy_(0, order, scores).float()


@register
class BatchNormScale(DataFreeCriterion):
    """Absolute scale of the batch normalisation that a channel passes through.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017,
    arXiv 1708.06519). The mean where a channel passes through several (a residual stream).
    Groups without batch normalisation are left out of the scores.
    """

    name = "bn-scale"
    missing = "no batch normalisation scales its channels"

    def value(self, group: Group, network: ObservedNetwork) -> Tensor | None:
        """Compute the mean absolute scale of each channel."""
        rows = [
            rows_of(member, tensor_of(member, network.modules)).abs().float()
            for member in group.members
            if member.tensor.rpartition(".")[2] == "weight"
            and isinstance(network.modules[member.module], _BatchNorm)
        ]
        return torch.cat([row.to(rows[0].device) for row in rows], dim=1).mean(1) if rows else None
