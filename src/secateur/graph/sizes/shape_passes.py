"""Run operators on tensors that only have a shape, faster than PyTorch does.

PyTorch decomposes normalisations and activations on the meta device into many operators written in Python,
which takes most of the time of a pass on shapes. Grouped products of shapes are refused in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from secateur._compat import FakeTensor
from secateur.graph.sizes.opened import opened


class ShapeMode(TorchFunctionMode):
    """Compute no more than the shape for operators whose result is as large as their first argument.

    >>> values, statistics = torch.empty(2, 3, device="meta"), torch.empty(3, device="meta")
    >>> with ShapeMode():
    ...     torch.nn.functional.batch_norm(values, statistics, statistics).shape
    torch.Size([2, 3])
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Open a function that holds operators, and run each of them."""
        function = opened(func)
        if function is not None:
            with self:
                return function(*args, **(kwargs or {}))
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator."""
        return run_on_shapes(func, args, kwargs)


# fmt: off
_ACTIVATIONS = {
    "relu", "hardtanh", "hardswish", "hardsigmoid", "gelu", "leaky_relu", "mish", "elu", "softplus",
    "sigmoid", "silu", "tanh",
}
# fmt: on


def run_on_shapes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator; of those that keep a shape, and of grouped products, compute shapes alone.

    Args:
        func: any operator of PyTorch.
        args: its positional arguments.
        kwargs: its named ones.

    Returns:
        What it returns; a result on the meta device has a gradient where it needs one.
    """
    name = getattr(func, "__name__", "")
    if kwargs.keys() <= _NUMBERS and args and _is_ordinary(args[0]):
        if name.removesuffix("_") in _ACTIVATIONS:
            return _Like.apply(name.endswith("_"), args[0])  # type: ignore[no-untyped-call]
        if name in _NORMALISED:
            shape = tuple(args[1]) if name == "layer_norm" else args[0].shape[1:2]
            parts = [part for part in args[slice(*_NORMALISED[name])] if part is not None]
            fits = name != "layer_norm" or args[0].shape[-len(shape) :] == shape
            fits = fits and (name != "group_norm" or args[0].shape[1] % args[1] == 0)
            if fits and all(_is_ordinary(part) and part.shape == shape for part in parts):
                return _Like.apply(False, args[0], *parts)  # type: ignore[no-untyped-call]
    if name in ("grouped_mm", "_grouped_mm") and _are_shapes(*args[:2]):
        return args[0] @ args[1][0]  # rows of one matrix have the shape of rows of any
    return func(*args, **kwargs)


_NUMBERS = {"inplace", "approximate", "negative_slope", "min_val", "max_val", "alpha", "beta", "threshold"}
"""Named arguments of activations."""

_NORMALISED = {"batch_norm": (1, 5), "layer_norm": (2, 4), "group_norm": (2, 4)}
"""Normalisations, and where their tensors are among the arguments."""


def _are_shapes(rows: Tensor, matrices: Tensor) -> bool:
    """Return whether a grouped product gets rows and stacked matrices without values."""
    without_values = rows.is_meta or isinstance(rows, FakeTensor)
    return without_values and rows.dim() == 2 and matrices.dim() == 3


def _is_ordinary(value: Any) -> bool:
    """Return whether a value is a contiguous tensor of real numbers on the meta device, with dimensions."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.device.type == "meta"
        and value.is_floating_point()
        and value.dim() > 0
        and value.is_contiguous()
    )


class _Like(torch.autograd.Function):
    """An operator that computes only the shapes of results and gradients."""

    @staticmethod
    def forward(ctx: Any, in_place: bool, *tensors: Tensor) -> Tensor:
        ctx.tensors = tensors
        if in_place:
            ctx.mark_dirty(tensors[0])
            return tensors[0]
        return torch.empty_like(tensors[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *map(torch.empty_like, ctx.tensors)
