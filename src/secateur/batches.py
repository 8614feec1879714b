"""Split batches into what a network is called with and what its outputs are compared with.

A batch is one of three:

- a pair ``(inputs, targets)``. Inputs are a tensor, a tuple of positional arguments or a mapping of keyword
  arguments. A loss is ``loss_fn(outputs, targets)``.
- a mapping of keyword arguments, labels included, as data loaders of language models return it. A loss is
  ``loss_fn(outputs, batch)``, or the ``loss`` in what the network returns if there is no ``loss_fn``.
- inputs alone, where no targets are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from secateur.errors import UsageError

LossFunction = Callable[[Any, Any], Tensor]
"""The mean loss of a batch: of outputs and targets, or of outputs and a batch that is a mapping."""

_KINDS = "pairs (inputs, targets), or mappings of keyword arguments with the labels"


def plain(batch: Any) -> Any:
    """Turn a mapping, also that of a pair, into a dict, whatever its class.

    >>> from collections import UserDict
    >>> plain(UserDict(labels=1)), plain((UserDict(x=1), 2))
    ({'labels': 1}, ({'x': 1}, 2))
    """
    if isinstance(batch, Mapping):
        return dict(batch)
    return (plain(batch[0]), batch[1]) if _is_pair(batch) and isinstance(batch[0], Mapping) else batch


def too_few_examples(error: BaseException) -> str | None:
    """Return what to do where batch normalisation refuses a batch that has a single value for each channel.

    Args:
        error: what a network raised.

    Returns:
        What is wrong and what to do; ``None`` if it is another error.

    >>> too_few_examples(ValueError("Expected more than 1 value per channel when training, got ..."))
    'batch normalisation computes the mean and variance of a batch, and one example is too few: ...'
    >>> too_few_examples(ValueError("another one"))
    """
    if "more than 1 value per channel" not in str(error):
        return None
    return (
        "batch normalisation computes the mean and variance of a batch, and one example is too few: "
        "give at least two examples in every batch (drop_last=True leaves out a last batch of one)"
    )


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Split a batch into inputs and targets.

    Args:
        batch: a pair, a mapping, or inputs alone.

    Returns:
        The inputs, and the targets: the whole batch for a mapping, ``None`` for inputs alone.

    Raises:
        UsageError: it is of another kind.

    >>> split_batch(([1, 2], 3))
    ([1, 2], 3)
    >>> split_batch("text")
    Traceback (most recent call last):
    secateur.errors.UsageError: a batch is of type str; pass pairs (inputs, targets), or mappings of ...
    """
    batch = plain(batch)
    if _is_pair(batch):
        return batch[0], batch[1]
    if isinstance(batch, dict):
        return batch, batch
    if isinstance(batch, Tensor | tuple | list):
        return batch, None
    raise UsageError(f"a batch is of type {type(batch).__name__}; pass {_KINDS}, or tensors of inputs alone")


def split_with_targets(batch: Any, user: str) -> tuple[Any, Any]:
    """Split a batch into inputs and targets, where targets are needed.

    Args:
        batch: a pair or a mapping.
        user: what needs the targets, for the message.

    Raises:
        UsageError: it is of another kind.

    >>> split_with_targets([1, 2, 3], "ablation")
    Traceback (most recent call last):
    secateur.errors.UsageError: ablation needs batches that are pairs (inputs, targets), or mappings of ...
    """
    if isinstance(batch, Mapping) or _is_pair(batch):
        return split_batch(batch)
    size = f" of {len(batch)}" if hasattr(batch, "__len__") else ""
    raise UsageError(f"{user} needs batches that are {_KINDS}, not a {type(batch).__name__}{size}")


def own_loss(outputs: Any, _batch: Any = None) -> Tensor:
    """Return the loss that a network computes itself, from labels among its arguments: a loss function.

    Args:
        outputs: what the network returned.

    Raises:
        UsageError: the output holds no loss.
    """
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if isinstance(found, Tensor) and found.numel() == 1:
        return found
    raise UsageError(
        f"the network returned {type(outputs).__name__} without a loss for a batch that is a mapping: put "
        "the labels into the batch, or pass loss_fn, which is called as loss_fn(outputs, batch)"
    )


def labels_of(targets: Any) -> Any:
    """Find the labels among targets: those of a mapping, by the name ``labels`` or ``label``.

    Raises:
        UsageError: a mapping has no such name.

    >>> labels_of({"x": 1, "labels": 2}), labels_of(3)
    (2, 3)
    """
    if not isinstance(targets, Mapping):
        return targets
    found = targets.get("labels", targets.get("label"))
    if found is None:
        raise UsageError(f"a batch with the keys {', '.join(map(str, targets))} has no 'labels'")
    return found


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2


def refuse_one_shot(batches: Iterable[Any] | None, name: str = "batches") -> None:
    """Refuse a generator or another iterator where batches are gone through more than once.

    Args:
        batches: what the user gave; ``None`` is no mistake.
        name: of the argument, for the message.

    Raises:
        UsageError: they can be gone through only once.

    >>> refuse_one_shot([1, 2])
    >>> refuse_one_shot(iter([1, 2]))
    Traceback (most recent call last):
    secateur.errors.UsageError: batches is a list_iterator, which can be gone through only once: ...
    """
    # Asking for an iterator would start a pass: loaders shuffle, count their passes, or start workers.
    if isinstance(batches, Iterator):
        raise UsageError(
            f"{name} is a {type(batches).__name__}, which can be gone through only once: "
            f"pass a list of batches (list({name})) or a DataLoader"
        )
