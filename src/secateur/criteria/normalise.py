"""Normalisation of scores within a group, so that groups can be ranked against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from secateur.errors import UsageError


def _over(scale: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Division by a size of the group; a group whose size is zero stays zero."""

    def divide(values: Tensor) -> Tensor:
        size = scale(values)
        return values / size if size > 0 else torch.zeros_like(values)

    return divide


def _min_max(values: Tensor) -> Tensor:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else torch.zeros_like(values)


NORMALIZERS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "l2": _over(lambda values: values.square().sum().sqrt()),
        "l1": _over(lambda values: values.abs().sum()),
        "max": _over(lambda values: values.abs().max()),
        "min-max": _min_max,
        "none": lambda values: values,
    }
)
"""The ways to normalise the scores of one group, by name."""


def normalize(values: Tensor, how: str = "l2") -> Tensor:
    """The scores of one group, made comparable with those of other groups.

    ``l2`` divides by the root of the sum of squares, as in equation 10 of "Pruning Convolutional
    Neural Networks for Resource Efficient Inference" (arXiv 1611.06440); ``l1`` by the sum of
    absolute values; ``max`` by the largest absolute value; ``min-max`` maps the range to
    [0, 1]; ``none`` changes nothing. Where the divisor is zero the result is zero.

    Args:
        values: scores of one group, shape ``(channels,)``.
        how: a name in :data:`NORMALIZERS`.

    Returns:
        Normalised scores, float32, shape ``(channels,)``.

    Raises:
        UsageError: if ``how`` is unknown.

    >>> normalize(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    >>> normalize(torch.zeros(2), "max")
    tensor([0., 0.])
    """
    if how not in NORMALIZERS:
        raise UsageError(f"no normalisation is called {how!r}; choose one of {', '.join(NORMALIZERS)}")
    if values.numel() == 0:
        return values.float()
    return NORMALIZERS[how](values.double()).float()
