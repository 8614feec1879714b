"""Compute losses of networks with auxiliary outputs, of those that have their own, of language models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from secateur.batches import LossFunction, labels_of, own_loss
from secateur.errors import TrainingError, UsageError
from secateur.outputs import parts_of

NOT_COUNTED = -100
"""The target of a token that is read and not predicted."""

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


def is_cross_entropy(loss_fn: LossFunction | None) -> bool:
    """Return whether a loss is cross-entropy, with whatever settings, or the default, which is that.

    >>> is_cross_entropy(partial(cross_entropy, label_smoothing=0.1)), is_cross_entropy(max)
    (True, False)
    """
    function = loss_fn.func if isinstance(loss_fn, partial) else loss_fn
    return function in (None, cross_entropy) or isinstance(function, nn.CrossEntropyLoss)


def _as_wide(targets: Any, scores: Tensor) -> Any:
    """Give weights of classes (mixup) a zero for each class that a network scores and the data does not have.

    Class indices need no such thing: cross-entropy takes those of the first classes.
    """
    if not isinstance(targets, Tensor) or not targets.is_floating_point() or targets.dim() != 2:
        return targets
    missing = scores.shape[1] - targets.shape[1] if scores.dim() == 2 else 0
    return pad(targets, (0, missing)) if missing > 0 else targets


def with_auxiliaries(loss_fn: LossFunction, *, own: bool = False) -> LossFunction:
    """Extend a loss to networks with auxiliary heads.

    GoogLeNet's two heads count 0.3 each (arXiv 1409.4842, section 5), the single head of
    Inception v3 counts 0.4. They return outputs in training mode only. Cross-entropy takes weights of the
    first classes too (mixup), where a network scores more classes than the data has.

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
        main = main_output(outputs)
        targets = _as_wide(targets, main) if is_cross_entropy(loss_fn) else targets
        loss = loss_fn(main, targets)
        if not isinstance(outputs, tuple | list):
            return loss
        auxiliaries = [output for output in outputs[1:] if output is not None]
        weight = _LONE_AUXILIARY_WEIGHT if len(auxiliaries) == 1 else _AUXILIARY_WEIGHT
        for output in auxiliaries:
            loss = loss + weight * loss_fn(output, targets)
        return loss

    return total


def next_token_loss(outputs: Any, targets: Any) -> Tensor:
    """Compute the mean loss of predicting each token from the tokens before it.

    Args:
        outputs: logits of the next token, shape ``(batch, length, vocabulary)``, or what begins with them.
        targets: token ids, int64, shape ``(batch, length)``, not shifted, or a batch whose ``labels`` they
            are. Tokens whose target is -100 do not count, nor does the first of each sequence.

    Returns:
        A scalar, in nats, differentiable in ``outputs``.

    Raises:
        UsageError: the shapes do not fit.

    >>> words = torch.tensor([[0, 1, 1]])
    >>> round(float(next_token_loss(torch.zeros(1, 3, 4), words)), 4)  # log 4
    1.3863
    """
    losses, counted = token_losses(main_output(outputs), labels_of(targets))
    return losses.sum() / counted.sum()


def evaluation_loss(loss_fn: LossFunction | None) -> LossFunction:
    """Return the loss by which a network is evaluated: that of language models, or cross-entropy.

    Args:
        loss_fn: that of its training, if one was given.
    """
    return next_token_loss if loss_fn is next_token_loss else cross_entropy


def token_losses(logits: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    """Compute the loss of each token but the first of each sequence.

    Args:
        logits: of the next token, shape ``(batch, length, vocabulary)``.
        targets: token ids, shape ``(batch, length)``, not shifted.

    Returns:
        Losses, float32 (or float64), shape ``(batch, length - 1)``, zero where the target is -100; and where
        they count, bool, of the same shape.

    Raises:
        UsageError: the shapes do not fit.
    """
    if not isinstance(targets, Tensor) or targets.ndim != 2 or logits.shape[:-1] != targets.shape:
        found = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise UsageError(
            f"the loss of the next token needs logits of shape (batch, length, vocabulary) and token ids of "
            f"shape (batch, length) as targets, not {tuple(logits.shape)} and {found}"
        )
    following = targets[:, 1:]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    losses = cross_entropy(
        logits[:, :-1].flatten(0, 1).to(dtype),
        following.flatten(),
        ignore_index=NOT_COUNTED,
        reduction="none",
    )
    return losses.view(following.shape), following != NOT_COUNTED
