"""Calls: one operator with tensors of given sizes, which is what gets timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSpec:
    """A tensor argument.

    Attributes:
        shape: its sizes.
        dtype: type of its numbers.
        stored: whether it is a parameter or buffer, which rests in memory between two forward
            passes, and not a value that was just written.

    >>> print(TensorSpec((1, 8), torch.float32, True))
    float32[1,8]*
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: bool

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __str__(self) -> str:
        sizes = ",".join(map(str, self.shape))
        return f"{str(self.dtype).removeprefix('torch.')}[{sizes}]{'*' * self.stored}"

    def make(self, device: torch.device) -> Tensor:
        """A tensor like this: positive numbers, zeros where they are indices."""
        if self.dtype.is_floating_point:
            # Neither zero nor large: no operator has a way of its own for such numbers.
            return torch.rand(self.shape, device=device).add_(0.5).to(self.dtype)
        return torch.zeros(self.shape, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Call:
    """An operator and its arguments; printed, it is the name under which its time is kept.

    Attributes:
        name: of the operator, such as ``aten.conv2d.default``.
        arguments: positional arguments; tensors as ``TensorSpec``, also inside tuples.
        keywords: named arguments.
        function: the operator itself.

    >>> spec = TensorSpec((2, 3), torch.float32, False)
    >>> print(Call("aten.relu.default", (spec,), (), torch.ops.aten.relu.default))
    aten.relu.default(float32[2,3])
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    function: Callable[..., Any] = field(compare=False, repr=False)

    def __str__(self) -> str:
        words = [_word(item) for item in self.arguments]
        words += [f"{name}={_word(item)}" for name, item in self.keywords]
        return f"{self.name}({', '.join(words)})"

    @property
    def specs(self) -> list[TensorSpec]:
        """All tensors among the arguments."""
        return list(_specs((self.arguments, tuple(item for _, item in self.keywords))))


def replaced(item: Any, change: Callable[[TensorSpec], Any]) -> Any:
    """Arguments with every tensor replaced; tuples become lists, as operators want them."""
    if isinstance(item, TensorSpec):
        return change(item)
    if isinstance(item, tuple):
        return [replaced(part, change) for part in item]
    return item


def _specs(item: Any) -> list[TensorSpec]:
    if isinstance(item, TensorSpec):
        return [item]
    if isinstance(item, tuple):
        return [spec for part in item for spec in _specs(part)]
    return []


def _word(item: Any) -> str:
    if isinstance(item, tuple):
        return f"[{', '.join(map(_word, item))}]"
    return str(item)
