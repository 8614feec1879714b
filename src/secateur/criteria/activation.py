"""Criteria from what the consumers of a channel read, without gradients.

Each is made of moments: averages over the examples and positions of a batch. They are kept per
reader, turned into a score per reader, and the scores of a channel's readers are averaged, since
readers may see different values of it (before and after a pooling, say).

Shapes: R rows of a reader's input, P positions, L values per row and position, K moments.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, Observer, Subject, register
from secateur.criteria.gates import wide
from secateur.criteria.hooks import as_rows, attach
from secateur.criteria.layout import Layout, Read
from secateur.errors import UsageError
from secateur.ranks import Ranks


class ActivationCriterion(Criterion):
    """A criterion on averages of what is read.

    A subclass has a ``name`` and says which averages in :meth:`moments`.
    """

    needs = Needs.FORWARD

    @abstractmethod
    def moments(self, x: Tensor) -> Tensor:
        """Averages over the rows and values of a batch.

        Args:
            x: what a reader reads, floating point, shape ``(R, P, L)``.

        Returns:
            Shape ``(K, P)``.
        """

    def finish(self, moments: Tensor) -> Tensor:
        """The score from the averages over all batches: the first of them by default.

        Args:
            moments: shape ``(K, C)``, C channels.

        Returns:
            Scores, shape ``(C,)``.
        """
        return moments[0]

    def observe(self, subject: Subject) -> Observer:
        """An observer that averages over batches."""
        return ActivationObserver(self, subject)


class ActivationObserver(Observer):
    """Averages a criterion's moments over all forward passes, per reader.

    Args:
        criterion: which moments.
        subject: the network and its layout.
    """

    def __init__(self, criterion: ActivationCriterion, subject: Subject) -> None:
        self._criterion = criterion
        self._subject = subject
        self._layout: Layout = subject.layout
        self._sums: dict[Read, Tensor] = {}
        self._counts: dict[Read, int] = {}

    def attach(self) -> list[RemovableHandle]:
        """Listens at all readers."""
        subject = self._subject
        return attach(subject.model, subject.modules, self._layout, lambda _: None, self._read)

    def _read(self, read: Read, x: Tensor) -> None:
        if not x.numel():
            return
        with torch.no_grad():
            rows = as_rows(x.detach(), read.dim)
            count = rows.shape[0] * rows.shape[2]
            moments = self._criterion.moments(rows)
            moments = moments.to(wide(moments)) * count
            self._sums[read] = self._sums[read] + moments if read in self._sums else moments
            self._counts[read] = self._counts.get(read, 0) + count

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Scores over all forward passes, averaged over readers."""
        seen = self._layout.seen_by(ranks, self._sums)
        if not seen:
            raise UsageError(
                f"{self._criterion.name} has seen no forward pass; call the network while it is watched"
            )
        channels = self._layout.channels
        total = torch.zeros(channels + 1, dtype=torch.float64)
        readers = torch.zeros(channels + 1, dtype=torch.float64)
        kinds = ranks.all_reduce_max(max((len(sums) for sums in self._sums.values()), default=0))
        for read in seen:
            nothing = torch.zeros(kinds, len(read.index))
            sums = ranks.all_reduce_sum(self._sums.get(read, nothing).to("cpu", torch.float64))
            count = ranks.all_reduce_sum(sums.new_tensor(self._counts.get(read, 0))).item()
            positions = torch.bincount(read.index, minlength=channels + 1)
            moments = sums.new_zeros(len(sums), channels + 1).index_add_(1, read.index, sums / count)
            here = positions > 0
            total[here] += self._criterion.finish(moments[:, here] / positions[here])
            readers += here
        scores = total[:-1] / readers[:-1].clamp(min=1)
        return scores, self._layout.unscored(seen)


@register
class ActivationMean(ActivationCriterion):
    """Mean of what is read, over examples and positions, with its sign.

    The mean activation of Molchanov et al. (arXiv 1611.06440).
    """

    name = "activation-mean"

    def moments(self, x: Tensor) -> Tensor:
        """The mean.

        >>> ActivationMean().moments(torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]]))
        tensor([[4.]])
        """
        return x.mean((0, 2), dtype=torch.float32)[None]


@register
class ActivationStd(ActivationCriterion):
    """Standard deviation of what is read, over examples and positions.

    As in Molchanov et al. (arXiv 1611.06440): the square root of the mean squared distance from
    the mean, without Bessel's correction.
    """

    name = "activation-std"

    def moments(self, x: Tensor) -> Tensor:
        """The mean and the mean square."""
        mean = x.mean((0, 2), dtype=torch.float32)
        variance = (x - mean[:, None]).square_().mean((0, 2), dtype=torch.float32)
        mean, variance = mean.to(wide(mean)), variance.to(wide(mean))
        return torch.stack([mean, variance + mean.square()])

    def finish(self, moments: Tensor) -> Tensor:
        """The root of the mean square less the squared mean."""
        mean, square = moments
        variance: Tensor = square - mean.square()
        return variance.clamp(min=0).sqrt()


@register
class Apoz(ActivationCriterion):
    """One less the average percentage of zeros: the share of values read that are not zero.

    Hu et al., "Network Trimming" (arXiv 1607.03250); turned round, so that larger is
    better here as everywhere. A channel that is always zero scores zero.
    """

    name = "apoz"

    def moments(self, x: Tensor) -> Tensor:
        """The share of values that are not zero.

        >>> Apoz().moments(torch.tensor([[[0.0, 3.0]], [[0.0, 0.0]]]))
        tensor([[0.2500]])
        """
        return (x != 0).float().mean((0, 2))[None]
