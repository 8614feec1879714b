"""Compute the training loss of a batch, and take an optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_fabric import Fabric, is_wrapped
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur._compat import tree_map_only
from secateur.batches import LossFunction, split_with_targets
from secateur.devices import channels_last
from secateur.graph.capture.obstacles import explain_small_batch
from secateur.graph.capture.program import call_arguments
from secateur.training.distillation import Teacher


class NotFiniteError(Exception):
    """A loss or a gradient is not finite."""


@dataclass(frozen=True)
class TrainingLoss:
    """Compute the training loss of a network on a batch.

    Attributes:
        loss_fn: mean loss of outputs and targets.
        teacher: a network whose outputs are learnt too.
        fabric: device and precision.
        channels_last: whether images are laid out with the channels last in memory.
    """

    loss_fn: LossFunction
    teacher: Teacher | None
    fabric: Fabric
    channels_last: bool

    def __call__(self, network: nn.Module, batch: Any) -> Tensor:
        """Compute the loss of a network that Fabric runs.

        Args:
            network: in training mode.
            batch: inputs and targets.

        Returns:
            The mean loss over the batch, shape ``()``.

        Raises:
            UsageError: batch normalisation gets a batch of one example.
        """
        inputs, targets = split_with_targets(batch, "training")
        inputs, targets = tree_map_only(Tensor, lambda leaf: leaf.to(self.fabric.device), (inputs, targets))
        if self.channels_last:
            inputs = tree_map_only(
                Tensor, lambda leaf: channels_last(leaf) if leaf.ndim == 4 else leaf, inputs
            )
        args, kwargs = call_arguments(inputs)
        own = getattr(network, "module", network) if is_wrapped(network) else network
        with explain_small_batch(own, "training"):
            outputs = network(*args, **kwargs)
        loss = self.loss_fn(outputs, targets)
        if self.teacher is not None:
            with self.fabric.autocast():
                loss = self.teacher.join(loss, outputs, inputs, scores=not isinstance(targets, Mapping))
        return loss

    def of_copy(self, copy: nn.Module, batch: Any) -> Tensor:
        """Compute the loss of a copy of the network, which Fabric does not run."""
        with self.fabric.autocast():
            return self(copy, batch)


def take_step(
    network: nn.Module,
    optimizer: Optimizer,
    compute_loss: Callable[[], Tensor],
    clip_norm: float,
    mean: Callable[[float], float] = float,
    backward: Callable[[Tensor], object] = Tensor.backward,
) -> float:
    """Take one optimizer step.

    Args:
        network: trained in place.
        optimizer: of its parameters.
        compute_loss: returns the loss, shape ``()``.
        clip_norm: the largest norm of the gradient; 0 for no limit.
        mean: averages the loss over the processes.
        backward: runs the backward pass.

    Returns:
        The loss before the step.

    Raises:
        NotFiniteError: the loss is not finite, or the gradient that is to be clipped; no step is taken.

    Example:
        >>> import torch
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(net.weight)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        >>> take_step(net, optimizer, lambda: net(torch.ones(1)).square().sum(), clip_norm=1.0)
        1.0
        >>> round(net.weight.item(), 5)  # the gradient of 2 is clipped to 1
        0.5
    """
    optimizer.zero_grad(set_to_none=True)
    loss = compute_loss()
    value = mean(float(loss.detach()))
    if not math.isfinite(value):
        raise NotFiniteError(f"the loss is {value}")
    backward(loss)
    if clip_norm:
        norm = float(nn.utils.clip_grad_norm_(network.parameters(), clip_norm))
        if not math.isfinite(norm):
            raise NotFiniteError(f"the norm of the gradient is {norm}")
    optimizer.step()
    return value
