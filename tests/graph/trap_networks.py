"""Networks that wire channels in ways that are easily got wrong, beside those in ``networks.py``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Between(nn.Module):
    """A convolution, something in between, and a convolution that reads what comes of it."""

    def __init__(self, between: Callable[[Tensor], Tensor], read: int, made: int = 8) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, made, 3, padding=1), nn.Conv2d(read, 4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(torch.tanh(self.conv(x))))


class OtherDimensions(nn.Module):
    """Concatenations of pictures side by side and of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        wide = self.head(torch.cat([one, two], -1))
        return torch.cat([wide.mean((2, 3)), self.head(torch.cat([two, one], 0)).amax((2, 3))], 0)


class Rounds(nn.Module):
    """Two halves; the last is worked on again and again, and every piece is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.split = nn.Conv2d(3, 8, 1)
        self.inner = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.join, self.head = nn.Conv2d(16, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pieces = list(self.split(x).chunk(2, 1))
        pieces.extend(inner(F.silu(pieces[-1])) for inner in self.inner)
        return self.head(F.silu(self.join(torch.cat(pieces, 1))))


class Gradual(nn.Module):
    """Pieces of one width, each worked on together with the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 3
        self.split = nn.Conv2d(3, 12, 1)
        self.inner = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *pieces = torch.split(self.split(x), self.width, 1)
        done = [first]
        for piece, inner in zip(pieces, self.inner, strict=True):
            done.append(torch.relu(inner(piece + done[-1])))
        return self.head(torch.cat(done, 1))


class UsedTwice(nn.Module):
    """One tensor multiplied by what another makes of it, and by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x * torch.sigmoid(self.gate(x)) + x * x)


class WeightNormed(nn.Module):
    """Convolutions whose weights are computed from a direction and a length."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.one, self.two = norm(nn.Conv2d(3, 8, 3)), norm(nn.Conv2d(8, 6, 1))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.one(x)))))


class TiedLayers(nn.Module):
    """Two layers with one weight and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(self.stem(x))))))


class TiedDecoder(nn.Module):
    """A decoder with the weight of the encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(3, 7), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.bias)


class TwoInputs(nn.Module):
    """A picture and numbers, of which one is an optional keyword; outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line, self.mix = nn.Conv2d(3, 6, 1), nn.Linear(5, 6), nn.Conv2d(6, 8, 1)
        self.heads = nn.ModuleDict({"one": nn.Conv2d(8, 2, 1), "two": nn.Conv2d(8, 3, 1)})

    def forward(self, picture: Tensor, *, numbers: Tensor, scale: float = 1.0) -> dict[str, object]:
        shift = self.line(numbers)[:, :, None, None] * scale
        mixed = torch.tanh(self.mix(self.conv(picture) + shift))
        one, two = (head(mixed) for head in self.heads.values())
        return {"maps": (one, [two]), "mean": one.mean()}


class SelfAttention(nn.Module):
    """The multi-head attention of PyTorch within a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


def maxout(x: Tensor) -> Tensor:
    """The largest of each pair of neighbours."""
    return x.view(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:]).amax(2)


def halves(x: Tensor) -> Tensor:
    """The larger of each channel and the one in the other half."""
    return torch.max(*x.chunk(2, 1))


ORDER = torch.tensor([3, 1, 0, 2, 7, 5, 6, 4])
PICTURE, LINES, TOKENS = (2, 3, 4, 4), (5, 3), (2, 6, 3)

TRAPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "shuffled by an operator": (lambda: Between(nn.ChannelShuffle(2), 8), PICTURE, {"conv": 4}),
    "picked in another order": (lambda: Between(lambda x: x[:, ORDER], 8), PICTURE, {}),
    "picked by a list": (lambda: Between(lambda x: x[:, [0, 2, 3]], 3), PICTURE, {"conv#2": 4}),
    "every other one": (lambda: Between(lambda x: x[:, ::2], 4), PICTURE, {"conv": 4}),
    "repeated": (lambda: Between(lambda x: x.repeat(1, 3, 1, 1), 24), PICTURE, {"conv": 8}),
    "repeated in place": (lambda: Between(lambda x: x.repeat_interleave(2, 1), 16), PICTURE, {"conv": 8}),
    "unshuffled pixels": (lambda: Between(nn.PixelUnshuffle(2), 32), PICTURE, {"conv": 8}),
    "largest of neighbours": (lambda: Between(maxout, 4), PICTURE, {"conv": 4}),
    "larger of halves": (lambda: Between(halves, 4), PICTURE, {"conv": 4}),
    "rolled in space": (lambda: Between(lambda x: x.roll((1, 2), (2, 3)), 8), PICTURE, {"conv": 8}),
    "glued unit": (lambda: Between(nn.GLU(1), 4), PICTURE, {"conv": 4}),
    "other dimensions": (OtherDimensions, PICTURE, {"one": 6}),
    "rounds": (Rounds, PICTURE, {"split": 4, "inner.0": 4, "inner.1": 4, "join": 6}),
    "gradual": (Gradual, PICTURE, {"split": 3, "inner.2": 3}),
    "used twice": (UsedTwice, PICTURE, {"conv": 6}),
    "unbatched": (lambda: Between(torch.relu, 8), PICTURE[1:], {"conv": 8}),
    "batch of one": (lambda: Between(nn.BatchNorm2d(8), 8), (1, *PICTURE[1:]), {"conv": 8}),
    "weights normed": (
        WeightNormed,
        PICTURE,
        {f"{name}.parametrizations.weight": n for name, n in (("one", 8), ("two", 6))},
    ),
    "tied layers": (TiedLayers, LINES, {"stem": 6}),
    "attention": (SelfAttention, TOKENS, {"embed": 4}),
}
"""By name: how it is made, the shape of its input, and the channels that a person would find."""
