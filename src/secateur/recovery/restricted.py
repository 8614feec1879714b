"""Repairs of any cut of one group, from moments that were gathered once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from secateur.graph import ChannelGraph
from secateur.graph.masked import Removed
from secateur.recovery.consumers import Consumer, find_consumers
from secateur.recovery.run import Run
from secateur.recovery.script import Script
from secateur.responses import Moments, blocks, fit_restricted, fit_rows_restricted, positions, rows_to_take

_ROWS_PER_UNKNOWN = 20


@dataclass(frozen=True, eq=False)
class Restricted:
    """A consumer that can be refitted for any choice of its channels.

    Attributes:
        consumer: the consumer.
        ridge: strength of the pull toward the old weights.
        patches: second moments (centred if a constant is fitted) and mean of the whole network's patches,
            shapes ``(G, U, U)`` and ``(G, 1, U)``; or those patches themselves, shape ``(G, R, U)``, where
            they are fewer than the unknowns.
    """

    consumer: Consumer
    ridge: float
    patches: tuple[Tensor, Tensor] | Tensor = field(repr=False)

    def repaired(self, removed: Removed, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The consumer's tensors after its best repair for the channels that are not removed.

        Args:
            removed: per slot, whether it is cut.
            tensors: the whole network's tensors; not changed.

        Returns:
            New weight and bias or running mean, in whole sizes; nothing if no channel of its is removed.
        """
        consumer, window = self.consumer, self.consumer.window
        gone = removed[consumer.labels]
        if not gone.any():
            return {}
        weight = tensors[consumer.weight]
        kept = torch.from_numpy(np.flatnonzero(~gone[: len(gone) // window.groups])).to(weight.device)
        taps = weight[0, 0].numel() if weight.dim() > 2 else 1
        columns = (kept[:, None] * taps + torch.arange(taps, device=kept.device)).ravel()
        flat = weight.reshape(window.groups, weight.shape[0] // window.groups, -1)
        fitted, shift = self._fit(flat, columns)
        new = flat.clone()
        new[..., columns] = fitted.to(weight.dtype)
        result = {consumer.weight: new.reshape(weight.shape)}
        constant = shift.reshape(-1).to(weight.dtype)
        if consumer.bias is not None:
            result[consumer.bias] = tensors[consumer.bias] + constant
        elif consumer.mean is not None:
            result[consumer.mean] = tensors[consumer.mean] - constant
        return result

    def _fit(self, weight: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        constant = self.consumer.constant
        if isinstance(self.patches, Tensor):
            return fit_rows_restricted(self.patches, weight, columns, self.ridge, constant=constant)
        return fit_restricted(*self.patches, weight, columns, self.ridge, constant=constant)


def gather_moments(
    script: Script, graph: ChannelGraph, tensors: Mapping[str, Tensor], ridge: float
) -> list[Restricted]:
    """Runs a whole network and gathers what the repair of each consumer needs.

    Args:
        script: the forward pass and the examples to repair with.
        graph: the network's channel graph.
        tensors: its parameters and buffers.
        ridge: strength of the pull toward the old weights.

    Returns:
        The consumers of prunable channels, in the order of the network.
    """
    prunable = np.array([group.prunable for group in graph.groups] + [False])
    run = Run(script, graph.removed, tensors)
    found = []
    for consumer in find_consumers(script):
        if not prunable[graph.wiring.group_of[consumer.labels]].any():
            continue
        run.advance(consumer.step)
        found.append(_gathered(consumer, run, ridge))
    return found


def _gathered(consumer: Consumer, run: Run, ridge: float) -> Restricted:
    script, window = run.script, consumer.window
    unknowns = len(consumer.labels) // window.groups * int(np.prod(window.kernel))
    share, dual = rows_to_take(consumer.rows(script, script.portions), unknowns, _ROWS_PER_UNKNOWN)
    generator = torch.Generator().manual_seed(0)
    moments, rows = Moments(), []
    for number, portion in enumerate(script.portions):
        x = script.trimmed(run.value(number, consumer.source), portion)
        chosen = positions(window.positions(tuple(x.shape)), share, generator)
        for block, nothing in blocks(window, x, None, chosen):
            if dual:
                rows.append(block)
            else:
                moments.add(block, nothing)
    if dual:
        return Restricted(consumer, ridge, torch.cat(rows, 1))
    # Every cut asks for these again, and of wide layers they are large: so they are worked out once.
    second, _, _ = moments.second(centred=consumer.constant)
    return Restricted(consumer, ridge, (second, moments.x_mean))
