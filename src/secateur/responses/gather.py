"""Gather patches and responses of a consumer, in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod

import torch
from torch import Tensor

from secateur.responses.window import Window

_BLOCK = 1 << 23  # numbers of patches that are unfolded at once: 32 MB in float32
_LEAST_ROWS = 4096
_LARGEST = 8192  # unknowns of which a full matrix of moments is kept


def rows_to_take(total: int, unknowns: int, per_unknown: int) -> tuple[float, bool]:
    """Choose how many rows to use for a consumer, and the form of the equations to solve.

    Args:
        total: rows that the examples give.
        unknowns: unknowns of an output channel.
        per_unknown: rows to use for each unknown, at most (but never fewer than 4096).

    Returns:
        The share of the rows to take, and whether the rows themselves are kept (the dual form,
        for fewer rows than unknowns or very many unknowns) instead of their second moments.

    Example:
        >>> rows_to_take(1_000_000, 1_000, 20), rows_to_take(512, 25_088, 20)
        ((0.02, False), (1.0, True))
    """
    dual = total < unknowns or unknowns > _LARGEST
    wanted = _LEAST_ROWS if dual else max(_LEAST_ROWS, per_unknown * unknowns)
    return min(1.0, wanted / max(1, total)), dual


def positions(count: int, share: float, generator: torch.Generator) -> Tensor | None:
    """Draw output positions without replacement; ``None`` for all of them.

    Args:
        count: number of output positions.
        share: how many of them, from 0 to 1.
        generator: of the random numbers.
    """
    if share >= 1:
        return None
    return torch.randperm(count, generator=generator)[: max(1, ceil(count * share))].sort().values


def blocks(
    window: Window, x: Tensor, y: Tensor | None, chosen: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield patches and responses, a few examples at a time.

    Args:
        window: kernel, stride, padding, dilation and groups of the consumer.
        x: its inputs, first dimension examples.
        y: responses of the same examples; ``None`` if they are not needed.
        chosen: output positions, by default all.

    Yields:
        Patches of shape ``(G, R, U)`` and responses of shape ``(G, R, O)``.
    """
    places = window.positions(tuple(x.shape)) if chosen is None else len(chosen)
    chosen = None if chosen is None else chosen.to(x.device)
    channels = x.shape[1] if window.kernel else x.shape[-1]
    step = max(1, _BLOCK // max(1, places * channels * prod(window.kernel)))
    for start in range(0, len(x), step):
        rows = window.patches(x[start : start + step], chosen)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if y is None:
            yield rows, rows[..., :0]
        else:
            yield rows, window.single.patches(y[start : start + step], chosen).to(rows.dtype)
