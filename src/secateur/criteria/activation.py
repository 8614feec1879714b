"""Score channels by what their consumers read, without gradients.

Each criterion is made of moments: averages over the examples and positions of a batch. Each consumer of
a channel has moments and a score, and these scores are averaged, since consumers may read different
values of the channel (before and after pooling, for example).

Shapes: R rows of a consumer's input, P positions, L values per row and position, K moments.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, ObservedNetwork, Observer, register
from secateur.criteria.gates import wide
from secateur.criteria.hooks import as_rows, attach
from secateur.criteria.layout import ChannelLayout, ScoredInput
from secateur.errors import UsageError
from secateur.ranks import Ranks


class ActivationCriterion(Criterion):
    """A criterion on averages of what is read.

    A subclass has a ``name`` and computes the averages in :meth:`moments`.
    """

    needs = Needs.FORWARD

    @abstractmethod
    def moments(self, x: Tensor) -> Tensor:
        """Average over the rows and values of a batch.

        Args:
            x: the input of a consumer, floating point, shape ``(R, P, L)``.

        Returns:
            Shape ``(K, P)``.
        """

    def finish(self, moments: Tensor) -> Tensor:
        """Compute the scores from the averages over all batches: the first of them by default.

        Args:
            moments: shape ``(K, C)``, C channels.

        Returns:
            Scores, shape ``(C,)``.
        """
        return moments[0]

    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that averages over batches."""
        return ActivationObserver(self, network)


class ActivationObserver(Observer):
    """Average a criterion's moments over all forward passes, for each consumer.

    Args:
        criterion: which moments.
        network: the network and its layout.
    """

    def __init__(self, criterion: ActivationCriterion, network: ObservedNetwork) -> None:
        self._criterion = criterion
        self._network = network
        self._layout: ChannelLayout = network.layout
        self._sums: dict[ScoredInput, Tensor] = {}
        self._counts: dict[ScoredInput, int] = {}

    def attach(self) -> list[RemovableHandle]:
        """Hook the inputs of all consumers."""
        network = self._network
        return attach(network.model, network.modules, self._layout, lambda _: None, self._input)

    def _input(self, scored: ScoredInput, x: Tensor) -> None:
        if not x.numel():
            return
        with torch.no_grad():
            rows = as_rows(x.detach(), scored.dim)
            count = rows.shape[0] * rows.shape[2]
            moments = self._criterion.moments(rows)
            moments = moments.to(wide(moments)) * count
            self._sums[scored] = self._sums[scored] + moments if scored in self._sums else moments
            self._counts[scored] = self._counts.get(scored, 0) + count

    def means(self, ranks: Ranks) -> dict[ScoredInput, Tensor]:
        """Average the moments of every consumer that was seen, float64, shape ``(K, P)``.

        Raises:
            UsageError: there was no forward pass.
        """
        seen = self._layout.seen_by(ranks, self._sums)
        if not seen:
            raise UsageError(
                f"{self._criterion.name} has seen no forward pass; "
                "call the network while scores are collected"
            )
        kinds = ranks.all_reduce_max(max((len(sums) for sums in self._sums.values()), default=0))
        means = {}
        for scored in seen:
            nothing = torch.zeros(kinds, len(scored.index))
            sums = ranks.all_reduce_sum(self._sums.get(scored, nothing).to("cpu", torch.float64))
            count = ranks.all_reduce_sum(sums.new_tensor(self._counts.get(scored, 0))).item()
            means[scored] = sums / count
        return means

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Compute scores over all forward passes, averaged over consumers."""
        channels = self._layout.channels
        total = torch.zeros(channels + 1, dtype=torch.float64)
        consumers = torch.zeros(channels + 1, dtype=torch.float64)
        means = self.means(ranks)
        for scored, averages in means.items():
            positions = torch.bincount(scored.index, minlength=channels + 1)
            moments = averages.new_zeros(len(averages), channels + 1).index_add_(1, scored.index, averages)
            here = positions > 0
            total[here] += self._criterion.finish(moments[:, here] / positions[here])
            consumers += here
        scores = total[:-1] / consumers[:-1].clamp(min=1)
        return scores, self._layout.unscored(means)


@register
class ActivationMean(ActivationCriterion):
    """Mean of what consumers read, over examples and positions, with its sign.

    The mean activation of Molchanov et al. (arXiv 1611.06440).
    """

    name = "activation-mean"

    def moments(self, x: Tensor) -> Tensor:
        """Return the mean.

        >>> ActivationMean().moments(torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]]))
        tensor([[4.]])
        """
        return x.mean((0, 2), dtype=torch.float32)[None]


@register
class ActivationStd(ActivationCriterion):
    """Standard deviation of what consumers read, over examples and positions.

    As in Molchanov et al. (arXiv 1611.06440): the square root of the mean squared distance from
    the mean, without Bessel's correction.
    """

    name = "activation-std"

    def moments(self, x: Tensor) -> Tensor:
        """Return the mean and the mean square."""
        mean = x.mean((0, 2), dtype=torch.float32)
        variance = (x - mean[:, None]).square_().mean((0, 2), dtype=torch.float32)
        mean, variance = mean.to(wide(mean)), variance.to(wide(mean))
        return torch.stack([mean, variance + mean.square()])

    def finish(self, moments: Tensor) -> Tensor:
        """Return the root of the mean square less the squared mean."""
        mean, square = moments
        variance: Tensor = square - mean.square()
        return variance.clamp(min=0).sqrt()


@register
class Apoz(ActivationCriterion):
    """One less the average percentage of zeros: the share of values read that are not zero.

    Hu et al., "Network Trimming" (arXiv 1607.03250), subtracted from one, so that a larger score means
    a channel that matters more. A channel that is always zero scores zero.
    """

    name = "apoz"

    def moments(self, x: Tensor) -> Tensor:
        """Return the share of values that are not zero.

        >>> Apoz().moments(torch.tensor([[[0.0, 3.0]], [[0.0, 0.0]]]))
        tensor([[0.2500]])
        """
        return (x != 0).float().mean((0, 2))[None]
