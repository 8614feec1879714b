"""Optimizers from their settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from secateur.training.settings import OptimizerSettings


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """An optimizer over all parameters that can be trained.

    Weight decay acts on weights of two and more dimensions; biases and the scales of
    normalisations, which have no redundancy to shrink, are left alone (arXiv 1812.01187, section 3.1).

    Args:
        model: the network.
        settings: which optimizer, and its constants.

    Returns:
        The optimizer, with one parameter group for the weights and one for the rest.

    >>> optimizer = make_optimizer(nn.Linear(3, 2), OptimizerSettings(weight_decay=0.1))
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.1, 0.0]
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "adamw":
        return AdamW(groups, lr=settings.learning_rate)
    return SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov)


class LearningRates:
    """The learning rates of an optimizer, to be multiplied by a schedule's factors for some time.

    Those that hold when this is made are the base. Nothing else is left in the optimizer.

    Args:
        optimizer: changed by :meth:`scale`, until :meth:`restore`.

    Example:
        >>> optimizer = SGD(nn.Linear(3, 2).parameters(), lr=0.4)
        >>> rates = LearningRates(optimizer)
        >>> rates.scale(0.5), rates.scale(0.25)
        (0.2, 0.1)
        >>> rates.restore()
        >>> optimizer.param_groups[0]["lr"]
        0.4
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups = list(optimizer.param_groups)
        self._base = [_number(group["lr"]) for group in self._groups]

    def scale(self, factor: float) -> float:
        """Sets every learning rate to its base times a factor.

        Returns:
            The largest learning rate that now holds.
        """
        self._set([base * factor for base in self._base])
        return max(float(group["lr"]) for group in self._groups)

    def restore(self) -> None:
        """Sets every learning rate to its base."""
        self._set(self._base)

    def _set(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self._groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # a captured step reads this very tensor
            else:
                group["lr"] = rate


def _number(rate: Any) -> float:
    return float(rate) if isinstance(rate, Tensor) else rate
