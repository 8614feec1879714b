"""Score channels by what their consumers read together with the weights that read it, without gradients.

Shapes: P positions of a consumer's input, K moments, W weights that read one position.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.criteria.activation import ActivationCriterion, ActivationObserver
from secateur.criteria.base import ObservedNetwork, Observer, register
from secateur.ranks import Ranks


class WeightedActivationCriterion(ActivationCriterion):
    """A criterion on averages of what is read, and on the weights that read it.

    The scores of all positions of a channel, in all consumers, are added. A subclass has a ``name`` and
    computes averages in :meth:`moments` and scores in :meth:`of_positions`.
    """

    @abstractmethod
    def of_positions(self, moments: Tensor, weights: Tensor) -> Tensor:
        """Score the positions of one consumer's input.

        Args:
            moments: averages over all batches, float64, shape ``(K, P)``.
            weights: those that read each position, float64, shape ``(P, W)``.

        Returns:
            Shape ``(P,)``.
        """

    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that averages over batches."""
        return WeightedActivationObserver(self, network)


class WeightedActivationObserver(ActivationObserver):
    """Average a criterion's moments over all forward passes, and read the weights when scores are computed.

    Args:
        criterion: which moments, and which scores.
        network: the network and its layout.
    """

    def __init__(self, criterion: WeightedActivationCriterion, network: ObservedNetwork) -> None:
        super().__init__(criterion, network)
        self._weighted = criterion

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Compute the scores over all forward passes, added over consumers."""
        layout = self._layout
        means = self.means(ranks)
        unread: dict[str, str] = {}
        total = torch.zeros(layout.channels + 1, dtype=torch.float64)
        for scored, moments in means.items():
            weights = _reading_weights(self._network.modules[scored.module], len(scored.index))
            if weights is None:
                for name in layout.groups_of([scored]):
                    kind = type(self._network.modules[scored.module]).__name__
                    reason = f"module {scored.module!r} ({kind}) is neither a convolution nor a linear layer"
                    unread.setdefault(name, reason)
            else:
                total.index_add_(0, scored.index, self._weighted.of_positions(moments, weights))
        return total[:-1], {**layout.unscored(means), **unread}


def _reading_weights(module: nn.Module, positions: int) -> Tensor | None:
    """List the weights that read each position of a module's input, float64, shape ``(P, W)``.

    >>> _reading_weights(nn.Conv2d(4, 6, 3, groups=2), 4).shape
    torch.Size([4, 27])
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    weight = weight.detach().cpu().double()
    groups = getattr(module, "groups", 1)
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        split = weight.flatten(2) if weight.dim() > 2 else weight[..., None]
        rows = split.reshape(groups, len(split) // groups, *split.shape[1:])
        return rows.permute(0, 2, 1, 3).reshape(positions, -1)
    # Transposed convolutions, and linear layers that keep their weight transposed, read by rows.
    return weight.flatten(1) if len(weight) == positions else None


@register
class Wanda(WeightedActivationCriterion):
    """Sum of the absolute weights that read a channel, times the root mean square of what they read.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695), eq. 1,
    added over the weights that read the channel.
    """

    name = "wanda"

    def moments(self, x: Tensor) -> Tensor:
        """Return the mean square.

        >>> Wanda().moments(torch.tensor([[[1.0, 3.0]]]))
        tensor([[5.]])
        """
        return x.float().square().mean((0, 2))[None]

    def of_positions(self, moments: Tensor, weights: Tensor) -> Tensor:
        """Multiply the root mean square by the sum of the absolute weights.

        >>> Wanda().of_positions(torch.tensor([[4.0]]), torch.tensor([[1.0, -2.0]]))
        tensor([6.])
        """
        return moments[0].sqrt() * weights.abs().sum(1)


@register
class Flap(WeightedActivationCriterion):
    """Variance of what is read, times the sum of the squared weights that read it.

    An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (arXiv
    2312.11983). A channel that hardly varies can be replaced by its mean, which reconstruction does.
    """

    name = "flap"

    def moments(self, x: Tensor) -> Tensor:
        """Return the mean and the mean square."""
        wide = x.float()
        return torch.stack([wide.mean((0, 2)), wide.square().mean((0, 2))])

    def of_positions(self, moments: Tensor, weights: Tensor) -> Tensor:
        """Multiply the variance by the sum of the squared weights.

        >>> Flap().of_positions(torch.tensor([[1.0], [5.0]]), torch.tensor([[1.0, -2.0]]))
        tensor([20.])
        """
        mean, square = moments.unbind()
        return (square - mean.square()).clamp(min=0) * weights.square().sum(1)
