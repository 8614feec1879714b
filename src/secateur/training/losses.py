"""Compute losses of networks with auxiliary outputs, and of those that compute their loss themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from secateur.batches import own_loss
from secateur.errors import TrainingError
from secateur.outputs import parts_of

LossFunction = Callable[[Any, Any], Tensor]
"""The mean loss of a batch: of outputs and targets, or of outputs and a batch that is a mapping."""

_AUXILIARY_WEIGHT = 0.3
_LONE_AUXILIARY_WEIGHT = 0.4


def main_output(outputs: Any) -> Tensor:
    """Return the main output of a network: the first, if auxiliary heads return outputs too.

    Args:
        outputs: a tensor, or a sequence, mapping or data class with the main output first; a loss, which has
            no dimension, does not count in the latter two.

    Raises:
        TrainingError: the network returned something else.

    >>> import torch
    >>> main_output({"loss": torch.tensor(0.5), "logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(outputs, tuple | list):
        main = outputs[0] if outputs else None
    else:
        tensors = parts_of(outputs).tensors
        main = next((tensor for tensor in tensors if tensor.dim()), None)
    if not isinstance(main, Tensor):
        raise TrainingError(
            f"the network returned {type(outputs).__name__}, not class scores or a tuple, mapping or data "
            "class that begins with them; wrap the network, or write the training loop yourself"
        )
    return main


def with_auxiliaries(loss_fn: LossFunction, *, own: bool = False) -> LossFunction:
    """Extend a loss to networks with auxiliary heads.

    GoogLeNet's two heads count 0.3 each (arXiv 1409.4842, section 5), the single head of
    Inception v3 counts 0.4. They return outputs in training mode only.

    Args:
        loss_fn: loss of one output against the targets; where the targets are a batch that is a mapping, it
            is called with all that the network returned.
        own: for batches that are mappings, take the loss that the network returned instead.

    Returns:
        The loss of all outputs together.

    >>> import torch
    >>> difference = with_auxiliaries(lambda output, target: (output - target).abs().mean())
    >>> one, two = torch.tensor([1.0]), torch.tensor([2.0])
    >>> difference((one, two), one).item() == torch.tensor(0.4).item()
    True
    """

    def total(outputs: Any, targets: Any) -> Tensor:
        if isinstance(targets, Mapping):
            return own_loss(outputs) if own else loss_fn(outputs, targets)
        loss = loss_fn(main_output(outputs), targets)
        if not isinstance(outputs, tuple | list):
            return loss
        auxiliaries = [output for output in outputs[1:] if output is not None]
        weight = _LONE_AUXILIARY_WEIGHT if len(auxiliaries) == 1 else _AUXILIARY_WEIGHT
        for output in auxiliaries:
            loss = loss + weight * loss_fn(output, targets)
        return loss

    return total
