"""Networks with residual branches, and the same networks with branches deleted in their code."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Basic(nn.Module):
    """Convolutions and norms that are siblings, with one activation in place for all calls: a ResNet."""

    def __init__(self, width: int, inner: int, absent: bool = False) -> None:
        super().__init__()
        self.absent = absent
        self.relu = nn.ReLU(inplace=True)
        if not absent:
            self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
            self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.absent:
            return torch.relu(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Whole(nn.Module):
    """A module that computes ``x + f(x)`` and nothing else; ``f`` is scaled by a weight of the module."""

    def __init__(self, width: int, inner: int, absent: bool = False) -> None:
        super().__init__()
        self.absent = absent
        if not absent:
            self.scale = nn.Parameter(torch.rand(width, 1, 1) + 0.5)
            self.body = nn.Sequential(nn.Conv2d(width, inner, 1), nn.GELU(), nn.Conv2d(inner, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.absent else x + self.scale * self.body(x)


class Parallel(nn.Module):
    """Two branches that are added to each other first, then to what both were computed from."""

    def __init__(self, width: int, inner: int, absent: Collection[str] = ()) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.left = None if "left" in absent else Whole(width, inner).body
        self.right = None if "right" in absent else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        if self.left is None or self.right is None:
            branch = self.left or self.right
            return x if branch is None else branch(n) + x
        return self.left(n) + self.right(n) + x


class Nested(nn.Module):
    """A branch with a branch in it."""

    def __init__(self, width: int, inner: int, absent: Collection[str] = ()) -> None:
        super().__init__()
        self.absent = absent
        if "outer" not in absent:
            self.first = nn.Conv2d(width, inner, 1)
            self.inside = Whole(inner, width, absent="inner" in absent)
            self.last = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if "outer" in self.absent:
            return x
        return x + self.last(torch.tanh(self.inside(torch.tanh(self.first(x)))))


class Gated(nn.Module):
    """A branch that is multiplied by a gate, and an embedding that it is shifted by."""

    def __init__(self, width: int, inner: int, absent: bool = False) -> None:
        super().__init__()
        self.absent = absent
        if not absent:
            self.conv = nn.Conv2d(width, width, 1)
            self.gate = nn.Conv2d(width, width, 1)
            self.shift = nn.Linear(inner, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.absent:
            return x * 1.5
        shifted = self.conv(x) + self.shift(embedding)[:, :, None, None]
        return (x + torch.sigmoid(self.gate(x)) * shifted) * 1.5


class Weights(nn.Module):
    """An attention that returns its weights too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, *, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(self.query(hidden) @ hidden.transpose(1, 2), dim=-1)
        return weights @ self.value(hidden), weights


class Attending(nn.Module):
    """Pre-norm attention with named arguments and a tuple as result, and an MLP."""

    def __init__(self, width: int, inner: int, absent: Collection[str] = ()) -> None:
        super().__init__()
        self.absent = absent
        if "attention" not in absent:
            self.norm1, self.attention = nn.LayerNorm(width), Weights(width)
        if "mlp" not in absent:
            self.norm2 = nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        if "attention" not in self.absent:
            found, _ = self.attention(hidden=self.norm1(x), mask=None)
            x = x + found
        return x if "mlp" in self.absent else x + self.mlp(self.norm2(x))


class Chain(nn.Module):
    """A stem, blocks on one stream of images, and a head."""

    def __init__(self, *blocks: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width + 5, 4)
        self.embed = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        embedding = torch.tanh(self.embed(x.mean((2, 3)).repeat(1, 2)[:, :5]))
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x, embedding) if isinstance(block, Gated) else block(x)
        return self.head(torch.cat([x.mean((2, 3)), embedding], 1))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic values that differ; in evaluation mode."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                values = torch.rand(tensor.shape, generator=draw)
                tensor.copy_(values + 0.5 if name.endswith(("var", "scale")) else values - 0.5)
    return model.eval()


def filled_from(small: nn.Module, model: nn.Module) -> nn.Module:
    """Give a network the tensors of another that has more; in evaluation mode."""
    known: dict[str, Any] = model.state_dict()
    small.load_state_dict({name: known[name] for name in small.state_dict()})
    return small.eval()
