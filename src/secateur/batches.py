"""Batches: refuse iterators where batches are read more than once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from secateur.errors import UsageError


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
