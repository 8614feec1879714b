"""Blocks that random networks are built of: each wires channels in a way of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def spatial(x: Tensor) -> tuple[int, ...]:
    """The spatial dimensions of a batch of pictures."""
    return tuple(range(2, x.dim()))


class Swish(nn.Module):
    """An activation written out, with a parameter of shape (C, 1, ...)."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.slope * x)


class ChannelsLast(nn.Module):
    """A module that works on the last dimension, applied to channels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.movedim(1, -1)).movedim(-1, 1)


class Residual(nn.Module):
    """Adds what comes out of a body to what goes in, or to a projection of it."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """A shortcut that pads with channels of zeros."""

    def __init__(self, body: nn.Module, channels: int, padding: int, *, both: bool) -> None:
        super().__init__()
        self.body, self.padding, self.both = body, padding, both

    def forward(self, x: Tensor) -> Tensor:
        front = self.padding if self.both else 0
        zeros = (0, 0) * (x.dim() - 2)
        return self.body(x) + F.pad(x, (*zeros, front, self.padding))


class Dense(nn.Module):
    """Concatenates what goes in with what comes out."""

    def __init__(self, body: nn.Module, *, twice: bool) -> None:
        super().__init__()
        self.body, self.twice = body, twice

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(x), x, x] if self.twice else [x, self.body(x)], 1)


class Doubled(nn.Module):
    """Concatenates a tensor with itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


class Chunked(nn.Module):
    """Equal chunks, one of them worked on, put together in another order."""

    def __init__(self, body: nn.Module, way: int) -> None:
        super().__init__()
        self.body, self.way = body, ("cat", "swap", "gate", "slice")[way % 4]

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "slice":
            half = x.shape[1] // 2
            return torch.cat([x[:, half:], self.body(x[:, :half])], 1)
        one, two = x.chunk(2, 1)
        if self.way == "gate":
            return torch.sigmoid(self.body(one)) * two
        return torch.cat([two, self.body(one)] if self.way == "swap" else [self.body(one), two], 1)


class Unequal(nn.Module):
    """Two unequal pieces, of sizes that are attributes or written in the code."""

    def __init__(self, body: nn.Module, one: int, two: int, *, fixed: bool) -> None:
        super().__init__()
        self.body, self.one, self.two = body, one, two
        self.sizes = str(one) if fixed else ""

    def forward(self, x: Tensor) -> Tensor:
        sizes = [int(self.sizes), x.shape[1] - int(self.sizes)] if self.sizes else [self.one, self.two]
        one, two = torch.split(x, sizes, 1)
        return torch.cat([self.body(one), two], 1)


class Gradual(nn.Module):
    """Pieces of one width, each worked on together with the one before it."""

    def __init__(self, bodies: list[nn.Module], width: int) -> None:
        super().__init__()
        self.bodies, self.width = nn.ModuleList(bodies), width

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = torch.split(x, self.width, 1)
        done, last = [first], first
        for piece, body in zip(rest, self.bodies, strict=True):
            last = body(piece + last)
            done.append(last)
        return torch.cat(done, 1)


class Rounds(nn.Module):
    """Two chunks; the last piece is worked on again and again, and all pieces are kept."""

    def __init__(self, bodies: list[nn.Module], join: nn.Module) -> None:
        super().__init__()
        self.bodies, self.join = nn.ModuleList(bodies), join

    def forward(self, x: Tensor) -> Tensor:
        pieces = list(x.chunk(2, 1))
        for body in self.bodies:
            pieces.append(body(pieces[-1]))
        return self.join(torch.cat(pieces, 1))


class Selective(nn.Module):
    """Branches stacked, weighed by a soft-max over branches, and summed."""

    def __init__(self, one: nn.Module, two: nn.Module, weigh: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.weigh = one, two, weigh

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([self.one(x), self.two(x)], 1)
        weight = self.weigh(stacked.sum(1).mean(spatial(x))).view(x.shape[0], 2, -1).softmax(1)
        return (stacked * weight.view(*weight.shape, *(1,) * (x.dim() - 2))).sum(1)


class Excite(nn.Module):
    """A channel gate, by view or by unsqueezing."""

    def __init__(self, channels: int, inner: int, *, by_view: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.by_view = by_view

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean(spatial(x))))))
        if self.by_view:
            return x * gate.view(x.shape[0], x.shape[1], *(1,) * (x.dim() - 2))
        for _ in range(x.dim() - 2):
            gate = gate.unsqueeze(-1)
        return x * gate


class Shuffle(nn.Module):
    """Channels of several groups interleaved."""

    def __init__(self, groups: int, *, by_view: bool) -> None:
        super().__init__()
        self.groups, self.by_view = groups, by_view

    def forward(self, x: Tensor) -> Tensor:
        if not self.by_view:
            return F.channel_shuffle(x, self.groups)
        batch, channels, *space = x.shape
        x = x.view(batch, self.groups, channels // self.groups, *space)
        return x.transpose(1, 2).reshape(batch, channels, *space)


class Reordered(nn.Module):
    """Channels in another order, or several times."""

    def __init__(self, way: int, channels: int) -> None:
        super().__init__()
        ways = ("flip", "roll", "index", "select", "repeat", "interleave", "stride", "roll_space")
        self.way = ways[way % len(ways)]
        self.register_buffer("order", torch.randperm(channels))

    def out(self, channels: int) -> int:
        """How many channels come out."""
        factor = 2 if self.way in ("repeat", "interleave") else 1
        return (channels + 1) // 2 if self.way == "stride" else factor * channels

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "flip":
            return x.flip(1)
        if self.way == "roll":
            return x.roll(1, 1)
        if self.way == "roll_space":
            return x.roll(1, 2)
        if self.way == "index":
            return x[:, self.order]
        if self.way == "select":
            return x.index_select(1, self.order)
        if self.way == "repeat":
            return x.repeat(1, 2, *(1,) * (x.dim() - 2))
        if self.way == "interleave":
            return x.repeat_interleave(2, 1)
        return x[:, ::2]


class Maxout(nn.Module):
    """The largest of each pair of channels: pairs by view, or of two chunks."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = ("neighbours", "halves", "maximum", "max")[way % 4]

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *space = x.shape
        if self.way == "neighbours":
            return x.view(batch, channels // 2, 2, *space).amax(2)
        if self.way == "halves":
            return x.view(batch, 2, channels // 2, *space).max(1).values
        one, two = x.chunk(2, 1)
        return torch.maximum(one, two) if self.way == "maximum" else torch.max(one, two)


class OverChannels(nn.Module):
    """Something that looks at all channels of a place together."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = ("softmax", "norm", "mean", "gate")[way % 4]

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "softmax":
            return x.softmax(1)
        if self.way == "norm":
            return F.normalize(x, dim=1)
        if self.way == "mean":
            return x - x.mean(1, keepdim=True)
        return x * torch.sigmoid(x.amax(1, keepdim=True))


class Scale(nn.Module):
    """A parameter of shape (C, 1, ...), or of shape (1, C, 1, ...), or one for all channels."""

    def __init__(self, dims: int, channels: int, way: int) -> None:
        super().__init__()
        shapes = ((channels, *(1,) * dims), (1, channels, *(1,) * dims), (1,), (channels,))
        self.scale = nn.Parameter(torch.ones(shapes[way % 4]))
        self.last = way % 4 == 3

    def forward(self, x: Tensor) -> Tensor:
        if self.last:
            return (x.movedim(1, -1) * self.scale).movedim(-1, 1)
        return x + self.scale * x.square()


class Twice(nn.Module):
    """One module used twice."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(F.relu(self.body(x)))


class Attention(nn.Module):
    """Attention over positions, with one or three projections, by products or by one operator."""

    def __init__(self, channels: int, heads: int, width: int, way: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.packed, self.fused, self.inferred = way % 2 == 0, (way // 2) % 2 == 0, way // 4 == 0
        self.norm = nn.LayerNorm(channels)
        inner = heads * width
        self.qkv = nn.Linear(channels, 3 * inner) if self.packed else nn.Identity()
        sides = range(0 if self.packed else 3)
        self.sides = nn.ModuleList(nn.Linear(channels, inner, bias=side != 1) for side in sides)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        batch, count, _ = tokens.shape
        if self.packed:
            shape = (batch, count, 3, self.heads, -1 if self.inferred else self.width)
            query, key, value = self.qkv(tokens).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            shape = (batch, count, -1 if self.inferred else self.heads, self.width)
            query, key, value = (side(tokens).view(shape).transpose(1, 2) for side in self.sides)
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.transpose(-2, -1) * 0.3).softmax(-1) @ value
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, count, -1))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class MultiHead(nn.Module):
    """The multi-head attention of PyTorch."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Flat(nn.Module):
    """A head that reads every position of every channel."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(features, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(torch.flatten(x, 1))))


class Pooled(nn.Module):
    """A head that reads the mean of every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x.mean(spatial(x)))


def widths(channels: int) -> list[int]:
    """The numbers above one that divide a number of channels."""
    return [count for count in range(2, channels + 1) if channels % count == 0]
