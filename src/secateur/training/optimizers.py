"""Optimizers from their settings."""

from __future__ import annotations

from torch import nn
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


def set_factor(optimizer: Optimizer, factor: float) -> float:
    """Sets every learning rate to its base times ``factor``.

    The base of a parameter group is its learning rate when first seen here.

    Args:
        optimizer: changed in place.
        factor: from a schedule.

    Returns:
        The largest learning rate that now holds.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
