"""Unfold the patches that a convolution or a linear layer reads.

Shapes: N examples, C channels, S spatial sizes, O sizes of the output, G groups of the
convolution, K numbers in a kernel, P positions, U unknowns ``C / G * K`` of one output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Window:
    """The window of a convolution in any number of dimensions, or of a linear layer.

    Attributes:
        kernel: size of the window per spatial dimension; empty for a linear layer.
        stride: step per spatial dimension.
        padding: numbers of positions added before and after, per spatial dimension.
        dilation: distance of neighbouring taps, per spatial dimension.
        groups: groups of the convolution.
        fill: how padding is filled, as in :func:`torch.nn.functional.pad`.

    Example:
        >>> window = Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
        >>> window.patches(torch.zeros(4, 5, 8, 8)).shape
        torch.Size([1, 64, 45])
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    fill: str = "constant"

    @classmethod
    def of_module(cls, module: nn.Module) -> Window | None:
        """Read the window of a convolution or linear layer; ``None`` for other modules.

        >>> Window.of_module(nn.Conv1d(4, 4, 3, padding="same", groups=2))
        Window(kernel=(3,), stride=(1,), padding=((1, 1),), dilation=(1,), groups=2, fill='constant')
        """
        if isinstance(module, nn.Linear):
            return cls()
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return None
        fill = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return cls.of_options(
            tuple(module.kernel_size), module.stride, module.padding, module.dilation, module.groups, fill
        )

    @classmethod
    def of_options(
        cls,
        kernel: tuple[int, ...],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        fill: str = "constant",
    ) -> Window:
        """Create the window from the arguments of a convolution, single numbers or one per dimension."""
        dims = len(kernel)
        steps, taps = _each(stride, dims), _each(dilation, dims)
        if padding == "valid":
            padding = 0
        if padding == "same":
            total = [tap * (size - 1) for tap, size in zip(taps, kernel, strict=True)]
            sides = tuple((each // 2, each - each // 2) for each in total)
        else:
            sides = tuple((each, each) for each in _each(padding, dims))
        return cls(kernel, steps, sides, taps, groups, fill)

    @property
    def single(self) -> Window:
        """Return the window of one output position of the same layer, group by group."""
        dims = len(self.kernel)
        return Window((1,) * dims, (1,) * dims, ((0, 0),) * dims, (1,) * dims, self.groups)

    def positions(self, shape: tuple[int, ...]) -> int:
        """Count the output positions for one entry of the first dimension of an input.

        >>> Window.of_options((3,), padding=1).positions((2, 4, 10)), Window().positions((2, 7, 4))
        (10, 7)
        """
        return prod(self._outputs(shape))

    def patches(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Unfold the patches of an input, one row per output position.

        Args:
            x: the layer's input, shape ``(N, C, *S)``, or ``(N, ..., C)`` for a linear layer.
            chosen: flat indices of the output positions to use, shape ``(P,)``; by default all.

        Returns:
            Shape ``(G, N * P, U)``; the columns are in the order of ``weight.flatten(1)``.
        """
        if not self.kernel:
            rows = x.reshape(x.shape[0], -1, x.shape[-1])
            rows = rows if chosen is None else rows.index_select(1, chosen)
            return rows.reshape(1, -1, x.shape[-1])
        seen = self._unfolded(x)
        dims, sizes = len(self.kernel), self._outputs(tuple(x.shape))
        if chosen is None:
            taken = seen.flatten(2, 1 + dims) if dims > 1 else seen
        else:
            every = slice(None)
            taken = seen[(every, every, *torch.unravel_index(chosen, sizes))]  # type: ignore[index]
        count, channels, places = taken.shape[:3]
        taken = taken.reshape(count, self.groups, channels // self.groups, places, -1)
        return taken.permute(1, 0, 3, 2, 4).reshape(self.groups, count * places, -1)

    def _unfolded(self, x: Tensor) -> Tensor:
        """Create a view of shape ``(N, C, *O, *kernel)``."""
        if any(side for sides in self.padding for side in sides):
            x = F.pad(x, [side for sides in reversed(self.padding) for side in sides], self.fill)
        for dim, (size, step, tap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + dim, (size - 1) * tap + 1, step)[..., ::tap]
        return x

    def _outputs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self.kernel:
            return shape[1:-1]
        return tuple(
            (size + sum(sides) - (width - 1) * tap - 1) // step + 1
            for size, width, step, sides, tap in zip(
                shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )


def _each(number: Any, dims: int) -> tuple[int, ...]:
    """Expand to one number per dimension."""
    listed = tuple(number) if isinstance(number, list | tuple) else (number,)
    return tuple(int(item) for item in (listed * dims if len(listed) == 1 else listed))
