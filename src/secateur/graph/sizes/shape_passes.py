"""Operators of which PyTorch computes shapes slowly or not at all.

Batch normalisation of shapes is decomposed into some twenty operators written in Python, which takes most of
the time of a pass on shapes. Grouped products of shapes are refused in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from secateur._compat import FakeTensor
from secateur.graph.sizes.opened import opened


class ShapeNorm(TorchFunctionMode):
    """Run batch normalisation of shapes as one operator, and everything else as usual.

    >>> values, statistics = torch.empty(2, 3, device="meta"), torch.empty(3, device="meta")
    >>> with ShapeNorm():
    ...     torch.nn.functional.batch_norm(values, statistics, statistics).shape
    torch.Size([2, 3])
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        if func is torch.nn.functional.batch_norm:
            with self:
                return opened(func)(*args, **(kwargs or {}))  # type: ignore[misc]
        return run_on_shapes(func, args, kwargs or {})


def run_on_shapes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator; of batch normalisations and grouped products of shapes, only the shapes are computed.

    Args:
        func: any operator of PyTorch.
        args: its positional arguments.
        kwargs: its named ones.

    Returns:
        What it returns; a result on the meta device has a gradient where it needs one.
    """
    if func is torch.batch_norm and not kwargs and _is_ordinary(*args[:5]):
        return _Norm.apply(*args[:3])  # type: ignore[no-untyped-call]
    if getattr(func, "__name__", "") in ("grouped_mm", "_grouped_mm") and _are_shapes(*args[:2]):
        return args[0] @ args[1][0]  # rows of one matrix have the shape of rows of any
    return func(*args, **kwargs)


def _are_shapes(rows: Tensor, matrices: Tensor) -> bool:
    """Tell whether a grouped product gets rows and stacked matrices without values."""
    without_values = rows.is_meta or isinstance(rows, FakeTensor)
    return without_values and rows.dim() == 2 and matrices.dim() == 3


def _is_ordinary(value: Tensor, *parts: Tensor | None) -> bool:
    """Tell whether a batch normalisation gets tensors on the meta device that fit each other."""
    given = [part for part in parts if part is not None]
    return (
        value.dim() > 1
        and all(
            part.device.type == "meta" and part.dtype == value.dtype and part.shape == value.shape[1:2]
            for part in given
        )
        and value.device.type == "meta"
    )


class _Norm(torch.autograd.Function):
    """An operator of which only the shapes of results and gradients matter."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        ctx.like = [None if item is None else torch.empty_like(item) for item in tensors]
        return torch.empty_like(ctx.like[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(ctx.like)
