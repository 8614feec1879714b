"""The reconstruction criterion: what the consumers miss after their best repair.

Shapes: C channels of a group, U columns of a consumer's weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, Observer, Subject, register
from secateur.criteria.hooks import attach
from secateur.criteria.layout import Read
from secateur.criteria.ranks import Ranks
from secateur.errors import UsageError
from secateur.responses import Elimination, Moments, Window, nested_errors

_LARGEST = 8192  # unknowns of a consumer of which a full matrix is kept
_BLOCK = 1 << 23  # numbers of patches that are unfolded at once


@register
@dataclass(frozen=True)
class Reconstruction(Criterion):
    """What a channel's consumers miss once their other weights have been refitted without it.

    ``tr(W_cᵀ ([H⁻¹]_cc)⁻¹ W_c)`` with H the (centred) second moment of a consumer's patches
    and c the columns of the channel, see :mod:`secateur.responses.elimination`, as a share of the
    energy of the consumer's responses, added up over the consumers.

    Args:
        ridge: what is added to the diagonal of H, relative to its mean.
        nested: the least costly channel is taken away, the consumers are repaired, and so
            on; a channel scores what it cost when its turn came, so that the scores rank the channels
            of a group in nested order. Otherwise each is valued with all others in place.
    """

    name = "reconstruction"
    needs = Needs.FORWARD

    ridge: float = 1e-3
    nested: bool = True

    def observe(self, subject: Subject) -> Observer:
        """An observer that gathers second moments at every consumer."""
        return ReconstructionObserver(self, subject)


class ReconstructionObserver(Observer):
    """Gathers the second moments of what each consumer's window sees.

    Args:
        criterion: its settings.
        subject: the network and its layout.
    """

    def __init__(self, criterion: Reconstruction, subject: Subject) -> None:
        self._criterion = criterion
        self._subject = subject
        self._windows = {
            read: Window.of_module(subject.modules[read.module]) for read in subject.layout.reads
        }
        self._moments: dict[Read, Moments] = {}
        self._generator = torch.Generator().manual_seed(0)

    def attach(self) -> list[RemovableHandle]:
        """Listens at all readers."""
        subject = self._subject
        return attach(subject.model, subject.modules, subject.layout, lambda _: None, self._read)

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Scores from all forward passes."""
        if not self._moments:
            raise UsageError("reconstruction has seen no forward pass; call the network while it is watched")
        layout = self._subject.layout
        covariances = {read: _covariance(moments, ranks) for read, moments in self._moments.items()}
        unscored = {**layout.unscored(self._moments), **self._unfit()}
        start, parts = 0, []
        for group in layout.groups:
            stop = start + group.channels
            if group.name in unscored:
                parts.append(torch.zeros(group.channels))
            else:
                parts.append(self._score(start, stop, covariances))
            start = stop
        return torch.cat([torch.zeros(0), *parts]), unscored

    def _read(self, read: Read, x: Tensor) -> None:
        window = self._windows[read]
        if window is None or not x.numel() or _unknowns(read, window) > _LARGEST:
            return
        with torch.no_grad():
            x = x.detach().float()
            unknowns, count = _unknowns(read, window), window.positions(tuple(x.shape))
            share = min(1.0, max(4096, 4 * unknowns) / (count * len(x)))
            chosen = None
            if share < 1:
                order = torch.randperm(count, generator=self._generator)
                chosen = order[: ceil(share * count)].sort().values.to(x.device)
            moments = self._moments.setdefault(read, Moments())
            places = count if chosen is None else len(chosen)
            step = max(1, _BLOCK // max(1, places * unknowns * window.groups))
            for first in range(0, len(x), step):
                rows = window.patches(x[first : first + step], chosen)
                moments.add(rows, rows[..., :0])

    def _unfit(self) -> dict[str, str]:
        """Groups with a consumer that has no window, or too wide a one."""
        reasons = {}
        for read, window in self._windows.items():
            kind = type(self._subject.modules[read.module]).__name__
            if window is None:
                reason = f"module {read.module!r} ({kind}) is neither a convolution nor a linear layer"
            elif _unknowns(read, window) > _LARGEST:
                reason = f"module {read.module!r} ({kind}) has too many inputs for a full second moment"
            else:
                continue
            for name in self._subject.layout.groups_of([read]):
                reasons.setdefault(name, reason)
        return reasons

    def _score(self, start: int, stop: int, covariances: Mapping[Read, Tensor]) -> Tensor:
        parts = []
        for read, covariance in covariances.items():
            window = self._windows[read]
            if window is not None and bool(((read.index >= start) & (read.index < stop)).any()):
                weight = _weight(self._subject.modules[read.module])
                parts += list(self._parts(read, window, covariance, weight, (start, stop)))
        if self._criterion.nested:
            return nested_errors(parts, stop - start)
        return sum((part.errors() * scale for part, scale in parts), torch.zeros(stop - start).double())

    def _parts(
        self, read: Read, window: Window, covariance: Tensor, weight: Tensor, span: tuple[int, int]
    ) -> Iterator[tuple[Elimination, float]]:
        """One elimination for each group of the consumer, with the weight of its error."""
        taps, groups = prod(window.kernel), window.groups
        rows = weight.detach().cpu().double().reshape(groups, weight.shape[0] // groups, -1)
        energy = float((rows @ covariance * rows).sum())
        positions = read.index.reshape(groups, -1)
        for number in range(groups):
            here = ((positions[number] >= span[0]) & (positions[number] < span[1])).nonzero()[:, 0]
            order = here[positions[number][here].argsort(stable=True)]
            columns = (order[:, None] * taps + torch.arange(taps)).reshape(span[1] - span[0], -1)
            yield (
                Elimination(covariance[number], rows[number], columns, self._criterion.ridge),
                1 / energy if energy > 0 else 0.0,
            )


def _unknowns(read: Read, window: Window) -> int:
    return len(read.index) // window.groups * prod(window.kernel)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _covariance(moments: Moments, ranks: Ranks) -> Tensor:
    """The covariance over all ranks, float64 on the CPU, shape ``(G, U, U)``."""
    mean = moments.x_mean
    count = ranks.sum(mean.new_tensor(float(moments.count)))
    total = ranks.sum(mean * moments.count) / count
    second = ranks.sum((moments.covariance + mean.mT @ mean) * moments.count) / count
    return (second - total.mT @ total).cpu()
