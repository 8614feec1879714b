"""Normalise the scores of each group, so that groups can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from secateur.errors import UsageError


def normalise(values: Mapping[str, Tensor], how: str = "l2") -> dict[str, Tensor]:
    """Scale the scores of each group separately, so that groups can be ranked together.

    The kinds are ``l2`` (divide by the Euclidean norm of the group; Molchanov et al. 2017,
    arXiv 1611.06440, section 2.2), ``l1`` (divide by the sum of absolute scores), ``max``
    (divide by the largest absolute score), ``min-max`` (shift and scale to the range 0 to 1)
    and ``none``. None of them changes the order within a group. A group whose scores are all
    zero stays zero; under ``min-max`` a group whose scores are all equal becomes zero.

    Args:
        values: scores per group, each of shape ``(channels,)``, finite.
        how: the kind.

    Returns:
        New tensors of the same shapes, float64 where the scores are float64, else float32.

    Raises:
        UsageError: the kind is unknown.

    Example:
        >>> normalise({"conv1": torch.tensor([3.0, 4.0])}, "l2")
        {'conv1': tensor([0.6000, 0.8000])}
    """
    if how not in _KINDS:
        raise UsageError(f"Unknown normalisation {how!r}: choose one of {', '.join(_KINDS)}")
    return {name: _in_double(_KINDS[how], scores) for name, scores in values.items()}


def _in_double(kind: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return kind(scores.detach().to(torch.float64)).to(dtype) if scores.numel() else scores.detach().to(dtype)


def _by_norm(order: float) -> Callable[[Tensor], Tensor]:
    def scaled(scores: Tensor) -> Tensor:
        # Dividing by the largest first keeps squares within range.
        shares = _by_largest(scores)
        norm = torch.linalg.vector_norm(shares, order)
        return shares / norm if norm > 0 else shares

    return scaled


def _by_largest(scores: Tensor) -> Tensor:
    largest = scores.abs().max()
    return scores / largest if largest > 0 else scores.clone()


def _to_unit_range(scores: Tensor) -> Tensor:
    raised = scores - scores.min()
    return _by_largest(raised)


_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": _by_norm(2),
    "l1": _by_norm(1),
    "max": _by_largest,
    "min-max": _to_unit_range,
    "none": torch.clone,
}
