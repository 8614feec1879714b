"""Small networks with residual branches of all kinds, on images of 3 channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """One module computes stream and branch."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.f = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Basic(nn.Module):
    """Sibling modules compute the branch, with a function between them, and it may be added in place."""

    def __init__(self, channels: int, hidden: int, inplace: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            out += x
        else:
            out = out + x
        return F.relu(out)


class Nested(nn.Module):
    """A branch inside a branch."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, hidden, 1)
        self.inner = Residual(pointwise(hidden, 3 * hidden))
        self.b = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.inner(self.a(x)))


class Parallel(nn.Module):
    """Two branches read one norm."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.a = pointwise(channels, hidden)
        self.m = pointwise(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.a(y) + self.m(y)


class Gated(nn.Module):
    """The branch is scaled by a parameter of the block."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.5))
        self.f = pointwise(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.f(x)


class Skip(nn.Module):
    """The stream is used again after the blocks."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.up = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = z = self.down(x)
        for block in self.blocks:
            z = block(z)
        return self.up(torch.cat([y, z], 1))


def pointwise(channels: int, hidden: int) -> nn.Sequential:
    """Two layers with ``hidden`` channels between them."""
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))


def stack(*blocks: nn.Module, channels: int = 8) -> nn.Sequential:
    """A classifier with four classes."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        *blocks,
        nn.Conv2d(channels, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "basic": lambda: stack(Basic(8, 6), Basic(8, 20), Basic(8, 9, inplace=False)),
    "nested": lambda: stack(Nested(8, 5), Nested(8, 16), Basic(8, 4)),
    "parallel": lambda: stack(Parallel(8, 5), Parallel(8, 16)),
    "skip": lambda: Skip(Basic(8, 12), Residual(pointwise(8, 30)), Residual(nn.Conv2d(8, 8, 3, padding=1))),
    "gated": lambda: stack(Gated(8, 12), Gated(8, 7)),
    "in a row": lambda: stack(nn.Sequential(*[Residual(pointwise(8, hidden)) for hidden in (4, 9, 30)])),
}
"""Networks by name; each call builds one."""
