"""Make optimizers from their settings, and schedule their learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from secateur.training.settings import OptimizerSettings

_BASE_RATES = {"sgd": 0.01, "adamw": 0.001}
"""Rates of an optimizer until one is found."""


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """Make an optimizer over all parameters that can be trained.

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
    given = settings.learning_rate
    rate = _BASE_RATES[settings.name] if given == "auto" else given
    if settings.name == "adamw":
        return AdamW(groups, lr=rate)
    return SGD(groups, lr=rate, momentum=settings.momentum, nesterov=settings.nesterov)


def largest_rate(optimizer: Optimizer) -> float:
    """Return the largest learning rate of the parameter groups of an optimizer."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


@contextmanager
def scaled_learning_rates(optimizer: Optimizer) -> Iterator[Callable[[float], float]]:
    """Multiply the learning rates of an optimizer by factors within a block, and restore them afterwards.

    The rates at the beginning of the block are the base. Nothing else is changed in the optimizer, so a
    scheduler of the user's is not disturbed.

    Args:
        optimizer: changed within the block.

    Yields:
        A function that sets every rate to its base times a factor, and returns the largest rate.

    Example:
        >>> optimizer = SGD(nn.Linear(3, 2).parameters(), lr=0.4)
        >>> with scaled_learning_rates(optimizer) as scale:
        ...     scale(0.5), scale(0.25)
        (0.2, 0.1)
        >>> optimizer.param_groups[0]["lr"]
        0.4
    """
    groups = list(optimizer.param_groups)
    base = [_number(group["lr"]) for group in groups]

    def scale(factor: float) -> float:
        for group, rate in zip(groups, base, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)  # a captured step reads this very tensor
            else:
                group["lr"] = rate * factor
        return largest_rate(optimizer)

    try:
        yield scale
    finally:
        scale(1.0)


def _number(rate: Any) -> float:
    return float(rate) if isinstance(rate, Tensor) else rate


def learning_rate_factors(name: str, steps: int, warmup: float = 0.0) -> Iterator[float]:
    """Return the factor on the base learning rate for each step of a phase.

    The schedulers of PyTorch run on an optimizer that is used for nothing else. With warm-up, the rate first
    rises in a straight line. The first step after it has the full rate of the schedule, and no step has a
    rate of zero.

    Args:
        name: ``constant``; ``cosine`` (arXiv 1608.03983, eq. 5); or ``one-cycle`` (arXiv 1708.07120), which
            rises from 1/25 over 30% of the steps, then falls to 1/10,000.
        steps: optimizer steps of the phase.
        warmup: share of the steps, in [0, 1), that the warm-up takes.

    Yields:
        Numbers in (0, 1], one for each step.

    >>> list(learning_rate_factors("constant", 5, warmup=0.8))
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    climbing = math.ceil(warmup * steps)
    rest = steps - climbing
    if climbing:
        yield from _factors(partial(LambdaLR, lr_lambda=lambda step: (step + 1) / climbing), climbing)
    if rest:
        yield from _factors(_scheduler_of(name, rest), rest)


def _scheduler_of(name: str, steps: int) -> Callable[[Optimizer], LRScheduler]:
    if name == "constant":
        return partial(LambdaLR, lr_lambda=lambda _: 1.0)
    if name == "cosine":
        return partial(CosineAnnealingLR, T_max=steps)
    # PyTorch counts both ends as steps; here the lowest rate would come one step after the last.
    highest_at = (0.3 * steps + 1) / (steps + 1)
    return partial(
        OneCycleLR,
        max_lr=1.0,
        total_steps=steps + 1,
        pct_start=highest_at,
        cycle_momentum=False,
        div_factor=25,
        final_div_factor=1e4 / 25,
    )


def _factors(make: Callable[[Optimizer], LRScheduler], steps: int) -> Iterator[float]:
    shadow = SGD([torch.zeros(())], lr=1.0)
    scheduler = make(shadow)
    for _ in range(steps):
        yield shadow.param_groups[0]["lr"]
        shadow.step()  # a scheduler expects to follow a step
        scheduler.step()
