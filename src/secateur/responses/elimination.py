"""Compute the error of a consumer after the removal of channels and a refit of the others.

The response of a consumer is ``W x``. When some columns of W are removed and the others refitted by least
squares, the error of the responses is (Hassibi and Stork 1993, "optimal brain surgeon", with blocks of
columns instead of single weights)

    error = tr(W_cᵀ ([H⁻¹]_cc)⁻¹ W_c),    H = E[x xᵀ] + δ 1,

where c are the columns of the channel. Then W and H⁻¹ are downdated, and the same formula holds for the rest:

    W ← W − W_c ([H⁻¹]_cc)⁻¹ [H⁻¹]_c,    H⁻¹ ← H⁻¹ − [H⁻¹]_:c ([H⁻¹]_cc)⁻¹ [H⁻¹]_c: .

Shapes: U unknowns (columns), O output channels, n channels, s columns of a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Removable(Protocol):
    """Part of a consumer from which channels are removed, one after the other."""

    def errors(self) -> Tensor:
        """Compute the increase of the squared error by the removal of each single channel, shape ``(n,)``."""

    def remove(self, channels: Tensor) -> None:
        """Remove channels together and refit the others."""


_ROUNDS = 64  # channels are eliminated in about this many rounds at most


class Elimination:
    """Remove channels from one consumer, one after the other.

    Args:
        covariance: E[x xᵀ], centred if a constant is fitted, shape ``(U, U)``.
        weight: shape ``(O, U)``.
        columns: columns of each channel, shape ``(n, s)``; all different.
        ridge: δ relative to the mean of the diagonal.

    Example:
        Of two equal inputs, one can be removed with almost no error, and then the other cannot.

        >>> both = Elimination(torch.ones(2, 2), torch.tensor([[1.0, 1.0]]), torch.tensor([[0], [1]]), 1e-6)
        >>> bool((both.errors() < 1e-3).all())
        True
        >>> both.remove(torch.tensor([0]))
        >>> round(both.errors()[1].item(), 2)
        4.0
    """

    def __init__(self, covariance: Tensor, weight: Tensor, columns: Tensor, ridge: float) -> None:
        damped = covariance.double().clone()
        damped.diagonal().add_(ridge * damped.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
        self.inverse = torch.linalg.inv(damped)
        weight = weight.double()
        # Errors depend on Wᵀ W alone, so the triangular factor of many outputs (a vocabulary) is enough.
        self.weight = torch.linalg.qr(weight).R if len(weight) > 2 * weight.shape[1] else weight
        self._columns = columns
        self._place = torch.arange(len(damped))
        self._alive = torch.ones(len(columns), dtype=torch.bool)

    def errors(self) -> Tensor:
        """Compute the increase of the squared error by the removal of each single channel, shape ``(n,)``.

        Infinity for channels that are removed already.
        """
        result = torch.full((len(self._columns),), torch.inf, dtype=torch.float64)
        columns = self._place[self._columns[self._alive]]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = self.weight[:, columns].permute(1, 2, 0)
        result[self._alive] = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))
        return result

    def remove(self, channels: Tensor) -> None:
        """Remove channels together and refit the others."""
        gone = self._place[self._columns[channels].ravel()]
        stays = torch.ones(len(self.inverse), dtype=torch.bool)
        stays[gone] = False
        rows = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone][:, stays])
        self.weight = self.weight[:, stays] - self.weight[:, gone] @ rows
        self.inverse = self.inverse[stays][:, stays] - self.inverse[stays][:, gone] @ rows
        self._alive[channels] = False
        present = self._place >= 0
        left = present.clone()
        left[present.nonzero()[gone, 0]] = False
        self._place = torch.where(left, left.cumsum(0) - 1, -1)


class Uncorrelated:
    """Remove channels from a consumer whose inputs are taken as uncorrelated, so that no refit helps.

    The error is then the sum of squared weights times the variances of their inputs.

    Args:
        variances: of the inputs, shape ``(U,)``.
        weight: shape ``(O, U)``.
        columns: columns of each channel, shape ``(n, s)``.

    Example:
        >>> weight, columns = torch.tensor([[3.0, 1.0]]), torch.tensor([[0], [1]])
        >>> Uncorrelated(torch.tensor([1.0, 4.0]), weight, columns).errors().tolist()
        [9.0, 4.0]
    """

    def __init__(self, variances: Tensor, weight: Tensor, columns: Tensor) -> None:
        energies = variances.double() * weight.double().square().sum(0)
        self._errors = energies[columns].sum(1)

    def errors(self) -> Tensor:
        """Compute the squared error of the removal of each single channel, shape ``(n,)``.

        Infinity for channels that are removed already.
        """
        return self._errors.clone()

    def remove(self, channels: Tensor) -> None:
        """Remove channels; the others stay as they are."""
        self._errors[channels] = torch.inf


def nested_errors(parts: Sequence[tuple[Removable, float]], channels: int) -> Tensor:
    """Eliminate all channels of a group, the one with the least error first.

    Args:
        parts: the consumers of the group, each with the weight of its error.
        channels: number of channels, n.

    Returns:
        For each channel what its removal added to the error, shape ``(n,)``, made strictly
        ascending in the order of removal, so that the values rank the channels in nested order.
    """
    result = torch.zeros(channels, dtype=torch.float64)
    at_once = max(1, channels // _ROUNDS)
    floor = 0.0
    left = channels
    while left:
        errors = sum((part.errors() * scale for part, scale in parts), torch.zeros(channels).double())
        chosen = errors.argsort(stable=True)[: min(at_once, left)]
        for channel in chosen.tolist():
            # The next larger float32: scores are stored in float32, and ties would lose the order.
            floor = max(float(errors[channel]), _after(floor))
            result[channel] = floor
        left -= len(chosen)
        if left:
            for part, _ in parts:
                part.remove(chosen)
    return result


def _after(number: float) -> float:
    return float(torch.nextafter(torch.tensor(number, dtype=torch.float32), torch.tensor(torch.inf)))
