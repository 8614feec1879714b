"""Score channels by the error of their consumers after the best reconstruction without them.

Shapes: C channels of a group, U columns of a consumer's weight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, ObservedNetwork, Observer, register
from secateur.criteria.batch_counter import BatchCounter
from secateur.criteria.hooks import attach
from secateur.criteria.layout import ScoredInput
from secateur.errors import UsageError
from secateur.ranks import Ranks
from secateur.responses import (
    Elimination,
    Moments,
    Removable,
    Uncorrelated,
    Window,
    blocks,
    nested_errors,
    positions,
)

_LARGEST = 8192
"""Unknowns of a consumer of which a full second moment is kept, at most."""

_BYTES = 4 << 30
"""Memory of all full second moments, at most; consumers of the fewest unknowns come first."""

_LEAST_ROWS, _ROWS_PER_UNKNOWN = 4096, 4  # rows that one forward pass adds, at most


@register
@dataclass(frozen=True)
class ReconstructionError(Criterion):
    """Error of a channel's consumers after their other weights have been refitted without it.

    ``tr(W_cᵀ ([H⁻¹]_cc)⁻¹ W_c)`` with H the (centred) second moment of a consumer's patches
    and c the columns of the channel, see :mod:`secateur.responses.elimination`, as a share of the
    energy of the consumer's responses, added up over the consumers.

    Args:
        ridge: what is added to the diagonal of H, relative to its mean.
        nested: the channel with the least error is removed, the consumers are refitted, and so
            on; the score of a channel is its error at this time, so that the scores rank the channels
            of a group in nested order. Otherwise each is scored with all others in place.
    """

    name = "reconstruction"
    needs = Needs.FORWARD

    ridge: float = 1e-3
    nested: bool = True

    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that gathers second moments at every consumer."""
        return ReconstructionObserver(self, network)


class ReconstructionObserver(Observer):
    """Gather the second moments of the patches that each consumer reads.

    Args:
        criterion: the criterion.
        network: the network and its layout.
    """

    def __init__(self, criterion: ReconstructionError, network: ObservedNetwork) -> None:
        self._criterion = criterion
        self._network = network
        self._windows = {
            scored: Window.of_module(network.modules[scored.module]) for scored in network.layout.inputs
        }
        self._moments: dict[ScoredInput, Moments] = {}
        self._full = _with_full_moments(self._windows)
        self._batches = BatchCounter()

    def attach(self) -> list[RemovableHandle]:
        """Hook the inputs of all consumers."""
        network = self._network
        return attach(network.model, network.modules, network.layout, self._batches.begin, self._input)

    def expects(self, examples: int) -> None:
        """Take the size of the next batch over all processes, which determines how many rows are used."""
        self._batches.expect(examples)

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Compute the scores from all forward passes."""
        layout = self._network.layout
        seen = layout.seen_by(ranks, self._moments)
        if not seen:
            raise UsageError(
                "reconstruction has seen no forward pass; call the network while scores are collected"
            )
        covariances = {
            scored: self._covariance(scored, ranks) for scored in seen if self._windows[scored] is not None
        }
        unscored = {**layout.unscored(seen), **self._unfit()}
        start, parts = 0, [torch.zeros(0)]
        for group in layout.groups:
            stop = start + group.channels
            values = None if group.name in unscored else self._score(start, stop, covariances)
            if values is None:
                unscored.setdefault(
                    group.name, "the groups of a convolution hold unequal numbers of its channels"
                )
                values = torch.zeros(group.channels)
            parts.append(values)
            start = stop
        return torch.cat(parts), unscored

    def _input(self, scored: ScoredInput, x: Tensor) -> None:
        window = self._windows[scored]
        if window is None or not x.numel():
            return
        with torch.no_grad():
            x = x.detach()
            unknowns, count = _unknowns(scored, window), window.positions(tuple(x.shape))
            rows_here = count * len(x) * self._batches.examples / max(1, self._batches.here)
            share = max(_LEAST_ROWS, _ROWS_PER_UNKNOWN * unknowns) / rows_here
            chosen = positions(count, share, self._batches.generator)
            moments = self._moments.setdefault(scored, Moments())
            for rows, nothing in blocks(window, x, None, chosen):
                if scored in self._full:
                    moments.add(rows, nothing)
                else:
                    moments.add(rows[..., :0], rows)  # of responses, only squares are kept

    def _covariance(self, scored: ScoredInput, ranks: Ranks) -> Tensor:
        """Compute what is known of a consumer's inputs over all ranks, float64 on the CPU.

        Returns:
            Their covariance, shape ``(G, U, U)``; their variances, shape ``(G, U)``, if it is too wide.
        """
        window = self._windows[scored]
        assert window is not None
        moments, size = self._moments.get(scored, Moments()), (window.groups, _unknowns(scored, window))
        return (_covariance if scored in self._full else _variances)(moments, size, ranks)

    def _unfit(self) -> dict[str, str]:
        """Find groups with a consumer that has no window."""
        reasons: dict[str, str] = {}
        for scored, window in self._windows.items():
            if window is not None:
                continue
            kind = type(self._network.modules[scored.module]).__name__
            reason = f"module {scored.module!r} ({kind}) is neither a convolution nor a linear layer"
            for name in self._network.layout.groups_of([scored]):
                reasons.setdefault(name, reason)
        return reasons

    def _score(self, start: int, stop: int, covariances: Mapping[ScoredInput, Tensor]) -> Tensor | None:
        """Score one group; ``None`` if its channels have unequal numbers of columns."""
        parts: list[tuple[Removable, float]] = []
        for scored, covariance in covariances.items():
            window = self._windows[scored]
            assert window is not None
            weight = _weight(self._network.modules[scored.module])
            rows = weight.detach().cpu().double().reshape(window.groups, len(weight) // window.groups, -1)
            full = scored in self._full
            responses = rows @ covariance if full else rows * covariance[:, None]
            energy = float((responses * rows).sum())
            for number, inputs in enumerate(scored.index.reshape(window.groups, -1)):
                columns = _columns(inputs, start, stop, prod(window.kernel))
                if columns is None:
                    return None
                if columns.numel():
                    part: Removable
                    if full:
                        part = Elimination(covariance[number], rows[number], columns, self._criterion.ridge)
                    else:
                        part = Uncorrelated(covariance[number], rows[number], columns)
                    parts.append((part, 1 / energy if energy > 0 else 0.0))
        if self._criterion.nested:
            return nested_errors(parts, stop - start)
        return sum((part.errors() * scale for part, scale in parts), torch.zeros(stop - start).double())


def _columns(index: Tensor, start: int, stop: int, taps: int) -> Tensor | None:
    """Select the columns of each channel from ``start`` to ``stop``, shape ``(channels, columns)``.

    Args:
        index: for each input of a group of the consumer, the place of its channel.
        start: place of the first channel.
        stop: place behind the last channel.
        taps: columns of one input.

    Returns:
        The columns, none at all if no channel is read; ``None`` if some have more than others.

    >>> _columns(torch.tensor([9, 4, 3, 4, 3]), 3, 5, 1)
    tensor([[2, 4],
            [1, 3]])
    """
    here = ((index >= start) & (index < stop)).nonzero()[:, 0]
    counts = torch.bincount(index[here] - start, minlength=stop - start)
    if (counts != counts[0]).any():
        return None
    order = here[index[here].argsort(stable=True)]
    return (order[:, None] * taps + torch.arange(taps)).reshape(stop - start, int(counts[0]) * taps)


def _with_full_moments(windows: Mapping[ScoredInput, Window | None]) -> frozenset[ScoredInput]:
    """Choose the consumers whose full second moments are kept: all of a width, or none of it."""
    by_width: dict[int, list[ScoredInput]] = defaultdict(list)
    for scored, window in windows.items():
        if window is not None:
            by_width[_unknowns(scored, window)].append(scored)
    chosen: list[ScoredInput] = []
    left = _BYTES
    for unknowns in sorted(by_width):
        groups = sum(window.groups for scored in by_width[unknowns] if (window := windows[scored]))
        left -= groups * unknowns**2 * 8
        if left < 0 or unknowns > _LARGEST:
            break
        chosen += by_width[unknowns]
    return frozenset(chosen)


def _unknowns(scored: ScoredInput, window: Window) -> int:
    return len(scored.index) // window.groups * prod(window.kernel)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _covariance(moments: Moments, size: tuple[int, int], ranks: Ranks) -> Tensor:
    """Compute the covariance over all ranks, float64 on the CPU, shape ``(G, U, U)``."""
    groups, unknowns = size
    mean, second = torch.zeros(groups, 1, unknowns).double(), torch.zeros(groups, unknowns, unknowns).double()
    if moments.count:
        mean = moments.x_mean.cpu()
        second = moments.covariance.cpu() + mean.mT @ mean
    mean, second = _over_ranks(moments.count, mean, second, ranks)
    return second - mean.mT @ mean


def _variances(moments: Moments, size: tuple[int, int], ranks: Ranks) -> Tensor:
    """Compute the variances over all ranks of what was added as responses, float64, shape ``(G, U)``."""
    groups, unknowns = size
    mean = square = torch.zeros(groups, 1, unknowns).double()
    if moments.count:
        mean = moments.y_mean.cpu()
        square = moments.variance.cpu() + mean.square()
    mean, square = _over_ranks(moments.count, mean, square, ranks)
    return (square - mean.square())[:, 0]


def _over_ranks(rows: int, mean: Tensor, second: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Average a mean and a second moment over the rows of all ranks."""
    count = ranks.all_reduce_sum(torch.tensor(float(rows), dtype=torch.float64))
    return ranks.all_reduce_sum(mean * rows) / count, ranks.all_reduce_sum(second * rows) / count
