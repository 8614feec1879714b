"""Score channels by the mutual information between what their consumers read and the target.

Shapes: N examples, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, ObservedNetwork, Observer, register
from secateur.criteria.hooks import as_rows, attach, by_example
from secateur.criteria.layout import ScoredInput
from secateur.errors import UsageError
from secateur.ranks import Ranks

_CELLS_AT_ONCE = 10_000_000
"""Counters that are held at a time."""


@register
@dataclass(frozen=True)
class MutualInformation(Criterion):
    """Mutual information, in nats, between the quantised pooled activation and the target.

    Molchanov et al. (arXiv 1611.06440): I(x; y) = H(x) + H(y) - H(x, y). The
    activation of an example is averaged over positions, then over consumers, and sorted into
    equally filled bins (the edges are order statistics of each channel, so the score does not
    depend on its scale; equal values always share a bin). Targets are class numbers; targets
    of floating point are sorted into bins likewise. The estimate from counts is biased upward
    by about ``(bins - 1) * (K - 1) / (2 N)``, alike for all channels.

    It keeps one number per example and channel until the end: ``4 * N * C`` bytes.
    In :func:`secateur.criteria.watch`, pass the targets of each step with ``collector.targets(targets)``
    before calling the network.

    Attributes:
        bins: number of bins.
    """

    bins: int = 8
    name: ClassVar[str] = "mutual-information"
    needs: ClassVar[Needs] = Needs.FORWARD
    needs_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise UsageError(f"mutual information needs at least 2 bins, not {self.bins}")

    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that keeps pooled activations and targets."""
        return InformationObserver(self, network)


class InformationObserver(Observer):
    """Keep the pooled activations of each example, and its target.

    Args:
        criterion: number of bins.
        network: the network and its layout.
    """

    def __init__(self, criterion: MutualInformation, network: ObservedNetwork) -> None:
        self._bins = criterion.bins
        self._network = network
        self._targets: Tensor | None = None
        self._sums: Tensor | None = None
        self._consumers = torch.zeros(0)
        self._batch = 0
        self._pooled: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._seen: set[ScoredInput] = set()

    def attach(self) -> list[RemovableHandle]:
        """Hook the inputs of all consumers."""
        network = self._network
        return attach(network.model, network.modules, network.layout, self._begin, self._input)

    def targets(self, targets: Any) -> None:
        """Take the targets of the next forward pass, shape ``(N,)``."""
        self._fold()
        self._targets = as_labels(targets)

    def _begin(self, batch: int) -> None:
        self._fold()
        self._batch = batch

    def _input(self, scored: ScoredInput, x: Tensor) -> None:
        if self._targets is None:
            return
        with torch.no_grad():
            channels = self._network.layout.channels
            rows = as_rows(x.detach(), scored.dim)
            means = by_example(rows.mean(2, dtype=torch.float32), self._batch, scored)
            means = means.cpu() * (self._batch / max(x.shape[0], 1))
            positions = torch.bincount(scored.index, minlength=channels + 1)
            if self._sums is None:
                self._sums = torch.zeros(self._batch, channels + 1)
                self._consumers = torch.zeros(channels + 1)
            self._sums.index_add_(1, scored.index, means / positions[scored.index])
            self._consumers += positions > 0
            self._seen.add(scored)

    def _fold(self) -> None:
        """Store a finished forward pass with its targets."""
        sums, targets = self._sums, self._targets
        if sums is None or targets is None:
            return
        if len(targets) != len(sums):
            raise UsageError(f"there are {len(targets)} targets for {len(sums)} examples")
        self._pooled.append((sums / self._consumers.clamp(min=1))[:, :-1])
        self._labels.append(targets)
        self._sums = self._targets = None

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Compute the mutual information of all examples so far."""
        self._fold()
        nothing = torch.zeros(0, self._network.layout.channels)
        pooled = ranks.all_gather_rows(torch.cat([nothing, *self._pooled]))
        labels = ranks.all_gather_rows(torch.cat(self._labels) if self._labels else torch.zeros(0))
        if not len(pooled):
            raise UsageError(
                "mutual-information has seen no examples with targets; call targets(targets) of the score "
                "collector and then the network"
            )
        scores = mutual_information(pooled, labels, self._bins)
        layout = self._network.layout
        return scores, layout.unscored(layout.seen_by(ranks, self._seen))


def as_labels(targets: Any) -> Tensor:
    """Convert targets to a CPU vector of class numbers or of real values.

    One row per example of class probabilities becomes the most probable class.

    Raises:
        UsageError: the targets are of another kind.
    """
    if not isinstance(targets, Tensor) or targets.ndim not in (1, 2):
        kind = f"shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise UsageError(f"mutual-information needs one target per example as a tensor, not {kind}")
    labels: Tensor = targets.detach().cpu()
    return labels.argmax(1) if labels.ndim == 2 else labels


def quantise(values: Tensor, bins: int) -> Tensor:
    """Number the equally filled bin of each value, column by column.

    Args:
        values: shape ``(N, C)``.
        bins: number of bins; fewer are used where values are equal.

    Returns:
        Bin numbers, int64, shape ``(N, C)``.

    >>> quantise(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), 2).flatten()
    tensor([0, 0, 1, 1])
    """
    ranked = values.sort(0).values
    edges = ranked[[len(values) * k // bins for k in range(1, bins)]]
    numbers = torch.searchsorted(edges.T.contiguous(), values.T.contiguous(), right=True)
    return numbers.T


def mutual_information(values: Tensor, targets: Tensor, bins: int) -> Tensor:
    """Compute the mutual information, in nats, between each column of values and the targets, by counting.

    Args:
        values: real values, shape ``(N, C)``.
        targets: class numbers, or real values that are sorted into bins too, shape ``(N,)``.
        bins: number of bins.

    Returns:
        Shape ``(C,)``, not negative.

    >>> mutual_information(torch.tensor([[0.0, 5.0], [1.0, 5.0]]), torch.tensor([0, 1]), 2)
    tensor([0.6931, 0.0000])
    """
    if targets.is_floating_point():
        targets = quantise(targets[:, None], bins)[:, 0]
    classes, targets = targets.unique(return_inverse=True)
    cells = bins * len(classes)
    chunk = max(1, _CELLS_AT_ONCE // cells)
    return torch.cat([_information(part, targets, bins, cells) for part in values.split(chunk, dim=1)])


def _information(values: Tensor, targets: Tensor, bins: int, cells: int) -> Tensor:
    examples, channels = values.shape
    cell = torch.arange(channels) * cells + quantise(values, bins) * (cells // bins) + targets[:, None]
    counts = torch.bincount(cell.flatten(), minlength=channels * cells)
    joint = counts.view(channels, bins, -1).double() / examples
    independent = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    terms = torch.where(joint > 0, joint * (joint / independent).log(), 0.0)
    return terms.sum((1, 2)).clamp(min=0).float()
