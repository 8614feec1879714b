"""Refitting one consumer: patches of the cut network against responses of the original."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.graph import ChannelGraph
from secateur.recovery.consumers import Consumer
from secateur.recovery.narrow import taken
from secateur.recovery.run import Run
from secateur.recovery.script import kept_mask
from secateur.responses import Fit, Moments, blocks, fit_dual, fit_moments, positions, rows_to_take

_LEAST_SCALE = 1e-3  # a batch norm's scale below which a response cannot make up for anything


@dataclass(frozen=True)
class Repair:
    """What refitting one consumer did.

    Attributes:
        module: path of the consumer.
        error_before: share of the energy of the wanted responses that was missed before, the
            best constant granted where there is one.
        error: share that is missed now.

    Example:
        >>> print(Repair("layer1.0.conv2", 0.25, 0.01))
        layer1.0.conv2: 25.0% of the response missed, now 1.0%
    """

    module: str
    error_before: float
    error: float

    def __str__(self) -> str:
        return f"{self.module}: {self.error_before:.1%} of the response missed, now {self.error:.1%}"


@dataclass(frozen=True, eq=False)
class Refit:
    """One consumer, and the two networks that stand before it.

    Attributes:
        consumer: the consumer.
        graph: the channel graph of the original network.
        original: the original network, one step past the consumer.
        small: the cut network, at the consumer.
        ridge: strength of the pull toward the old weights.
        rows_per_unknown: rows to use for each unknown, at most.
        compensate: whether responses make up for what the value that they are added to misses.
    """

    consumer: Consumer
    graph: ChannelGraph
    original: Run
    small: Run
    ridge: float
    rows_per_unknown: int
    compensate: bool

    def apply(self, tensors: dict[str, Tensor]) -> Repair:
        """Fits the consumer and writes the result.

        Args:
            tensors: the cut network's parameters and buffers in the sizes of the original; changed.

        Returns:
            What it did.
        """
        consumer, groups = self.consumer, self.consumer.window.groups
        weight = tensors[consumer.weight]
        outputs, inputs = self._outputs(weight.device), self._inputs(weight.device)
        columns = inputs[: len(inputs) // groups]
        old = weight.index_select(0, outputs).index_select(1, columns)
        fit = self._fit(old.reshape(groups, len(outputs) // groups, -1), inputs, outputs, tensors)
        new = fit.weight.reshape(old.shape).to(weight)
        weight[outputs] = weight[outputs].index_copy(1, columns, new)
        constant = fit.constant.reshape(-1).to(weight)
        if consumer.bias is not None:
            tensors[consumer.bias][outputs] = constant
        elif consumer.mean is not None:
            tensors[consumer.mean][outputs] -= constant
        return Repair(consumer.module, fit.error_before, fit.error)

    def _inputs(self, device: torch.device) -> Tensor:
        """Positions of the input's channels that stay."""
        return torch.from_numpy(np.flatnonzero(~self.small.removed[self.consumer.labels])).to(device)

    def _outputs(self, device: torch.device) -> Tensor:
        """Output channels that stay."""
        stays = kept_mask(self.graph, self.small.removed, self.consumer.weight, 0)
        return stays.nonzero()[:, 0].to(device)

    def _fit(self, old: Tensor, inputs: Tensor, outputs: Tensor, tensors: dict[str, Tensor]) -> Fit:
        """Gathers rows and fits, by the smaller of the two systems."""
        total = self.consumer.rows(self.small.script, self.small.portions)
        share, dual = rows_to_take(total, old.shape[2], self.rows_per_unknown)
        pairs = self._pairs(inputs, outputs, tensors, share)
        if dual:
            gathered = list(pairs)
            x, y = (torch.cat([pair[item] for pair in gathered], 1) for item in (0, 1))
            return fit_dual(x, y, old, self.ridge, constant=self.consumer.constant)
        moments = Moments()
        for x, y in pairs:
            moments.add(x, y)
        return fit_moments(moments, old, self.ridge, constant=self.consumer.constant)

    def _pairs(
        self, inputs: Tensor, outputs: Tensor, tensors: dict[str, Tensor], share: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Patches of the cut network and wanted responses, block by block."""
        consumer, script, window = self.consumer, self.small.script, self.consumer.window
        generator = torch.Generator().manual_seed(0)
        for number, portion in enumerate(self.small.portions):
            x = script.trimmed(self.small.value(number, consumer.source), portion)
            wanted = self.original.value(number, consumer.node)
            if self.compensate:
                wanted = self._compensated(number, wanted, tensors)
            y = taken(script.trimmed(wanted, portion), consumer.dim, outputs)
            x = taken(x, consumer.dim, inputs)
            chosen = positions(window.positions(tuple(x.shape)), share, generator)
            yield from blocks(window, x, y, chosen)

    def _compensated(self, number: int, response: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """The response that also makes up for what the other summand behind it misses.

        With a batch norm of scale γ and variance σ² in between, a gap d of the other summand asks
        for ``d σ / γ`` more.
        """
        meeting = self.consumer.meeting
        if meeting is None or not all(run.holds(meeting.other) for run in (self.original, self.small)):
            return response
        gap: Tensor = self.original.value(number, meeting.other) - self.small.value(number, meeting.other)
        if meeting.norm is None:
            return response + gap
        scale_name, variance_name = meeting.norm
        deviation = (tensors[variance_name] + meeting.epsilon).sqrt()
        scale = torch.ones_like(deviation) if scale_name is None else tensors[scale_name]
        factor = torch.where(scale.abs() > _LEAST_SCALE, deviation / scale, 0.0)
        return response + gap * factor.view(-1, *[1] * (gap.dim() - 2))
