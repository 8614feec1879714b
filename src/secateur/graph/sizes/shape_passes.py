"""Batch normalisation of tensors that only have a shape, as one operator.

PyTorch decomposes it there into some twenty operators written in Python, which takes most of the time
of a pass on shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

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
    """Run an operator; of a batch normalisation of ordinary shapes, only the shapes are computed.

    Args:
        func: any operator of PyTorch.
        args: its positional arguments.
        kwargs: its named ones.

    Returns:
        What it returns; a result on the meta device has a gradient where it needs one.
    """
    if func is torch.batch_norm and not kwargs and _is_ordinary(*args[:5]):
        return _Norm.apply(*args[:3])  # type: ignore[no-untyped-call]
    return func(*args, **kwargs)


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
