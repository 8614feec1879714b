"""What changed code calls: small shifts of vectors, masks and loops."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from secateur.graph.labels import Value


def install() -> None:
    """Makes the functions of this file known to changed code."""
    import tests.mutants.shifts as here

    builtins.__mutant__ = here  # type: ignore[attr-defined]


def roll(vector: Any) -> Any:
    """The same vector, moved along by one place."""
    if isinstance(vector, np.ndarray):
        return np.roll(vector, 1)
    return vector


def reverse(vector: Any) -> Any:
    """The same vector from the end."""
    return vector[::-1].copy() if isinstance(vector, np.ndarray) else vector


def neighbour(index: Any) -> Any:
    """The index beside an index; anything else stays."""
    return index - 1 if type(index) is int and index > 0 else index


def neighbours(kept: Any) -> Any:
    """Kept positions beside the kept ones, as far as there are such."""
    if isinstance(kept, np.ndarray):
        gone = np.setdiff1d(np.arange(kept.max(initial=0) + 1), kept)
        if not len(gone):
            return kept
        return np.sort(np.append(np.delete(kept, np.searchsorted(kept, gone[-1])), gone[-1]))
    if isinstance(kept, Mapping):
        return {key: neighbours(item) for key, item in kept.items()}
    return kept


def without_last(kept: Any) -> Any:
    """A cut without its last dimension."""
    return dict(itertools.islice(kept.items(), len(kept) - 1)) if isinstance(kept, Mapping) else kept


def skip_first(items: Iterable[Any]) -> Any:
    """All but the first."""
    return itertools.islice(iter(items), 1, None)


def skip_last(items: Iterable[Any]) -> Any:
    """All but the last."""
    return list(items)[:-1]


def first(op: Any) -> Any:
    """What comes in comes out: of several results, the same for all."""
    value = op.first()
    several = not isinstance(op.node.meta["val"], torch.Tensor)
    return [value] * len(op.shapes) if several else value


def blank(found: Any) -> Any:
    """A result without its labels."""
    if isinstance(found, Value):
        return Value.plain(found.shape)
    if isinstance(found, list) and found and all(isinstance(item, Value) for item in found):
        return [Value.plain(item.shape) for item in found]
    return None if isinstance(found, np.ndarray) else found


def turned(found: Any) -> Any:
    """A result with its label vectors from the end."""
    if isinstance(found, Value):
        return Value(found.shape, tuple(reverse(item) for item in found.labels))
    return found
