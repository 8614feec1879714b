"""Blocks whose code makes tensors of sizes that it takes from attributes and from other tensors."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Blur(nn.Module):
    """One fixed kernel for every channel."""

    def __init__(self, dims: int, channels: int, way: int) -> None:
        super().__init__()
        self.way = ("shape", "attribute", "expanded", "repeated", "configured")[way % 5]
        self.channels, self.config = channels, SimpleNamespace(channels=channels)
        count = 1 if self.way in ("expanded", "repeated") else channels
        self.register_buffer("kernel", torch.rand(1, 1, *(3,) * dims).repeat(count, 1, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        kernel, groups, ones = self.kernel, x.shape[1], (1,) * (x.dim() - 1)
        if self.way == "attribute":
            groups = self.channels
        elif self.way == "configured":
            groups = self.config.channels
        elif self.way == "expanded":
            kernel = kernel.expand(x.shape[1], *(-1,) * (x.dim() - 1))
        elif self.way == "repeated":
            kernel = kernel.repeat(x.shape[1], *ones)
        return CONV[x.dim() - 2](x, kernel, padding=1, groups=groups)


class ZeroChannels(nn.Module):
    """A shortcut to more channels, filled up with zeros."""

    def __init__(self, body: nn.Module, planes: int, way: int) -> None:
        super().__init__()
        self.body, self.planes = body, planes
        self.way = ("zeros", "new", "other", "pad")[way % 4]

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        missing = (y.shape[1] if self.way == "other" else self.planes) - x.shape[1]
        shape = (x.shape[0], missing, *x.shape[2:])
        if self.way == "pad":
            return y + F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
        zeros = torch.zeros(shape, dtype=x.dtype) if self.way == "zeros" else x.new_zeros(shape)
        return y + torch.cat([x, zeros], 1)


class ConvolutionalState(nn.Module):
    """Steps of a gated recurrence over pictures, from a state of zeros."""

    def __init__(self, gates: nn.Module, hidden: int) -> None:
        super().__init__()
        self.gates, self.hidden = gates, hidden

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], self.hidden, *x.shape[2:], dtype=x.dtype)
        for _ in range(2):
            keep, new = self.gates(torch.cat([x, state], 1)).chunk(2, 1)
            state = state * keep.sigmoid() + new.tanh()
        return state


class Alternating(nn.Module):
    """Every other channel meets its neighbour."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = ("max", "gate", "turn")[way % 3]

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x[:, ::2], x[:, 1::2]
        if self.way == "max":
            return torch.max(even, odd)
        if self.way == "gate":
            return even * odd.sigmoid()
        return torch.stack([-odd, even], 2).flatten(1, 2)


def rotated(x: Tensor, *, neighbours: bool = False) -> Tensor:
    """Rotary positions, made anew for the width of a head."""
    width, count = x.shape[-1], x.shape[-2]
    speed = 1e4 ** (-torch.arange(0, width, 2, device=x.device).to(x.dtype) / width)
    angle = torch.arange(count, device=x.device).to(x.dtype)[:, None] * speed
    if neighbours:
        one, two = x[..., ::2], x[..., 1::2]
        turned = (one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos())
        return torch.stack(turned, -1).flatten(-2)
    cos, sin = (torch.cat([part, part], -1) for part in (angle.cos(), angle.sin()))
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


WAYS = ("operator", "interleave", "expand", "products", "five", "fused")


class GroupedQueries(nn.Module):
    """Attention of which several heads of queries share a head of keys and values."""

    def __init__(self, channels: int, heads: tuple[int, int], width: int, way: str, *, turn: int = 0) -> None:
        super().__init__()
        self.heads, self.shared = heads
        self.width, self.way, self.turn = width, way, turn
        self.times = self.heads // self.shared
        sizes = [self.heads * width, self.shared * width, self.shared * width]
        if way == "fused":
            self.qkv = nn.Linear(channels, sum(sizes))
        else:
            self.q, self.k, self.v = (nn.Linear(channels, size) for size in sizes)
        self.out = nn.Linear(self.heads * width, channels)

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, count, _ = x.shape
        if self.way == "fused":
            first, part = self.heads * self.width, self.shared * self.width
            mixed = self.qkv(x)
            query, key, value = (
                mixed[..., :first],
                mixed[..., first : first + part],
                mixed[..., first + part :],
            )
        else:
            query, key, value = self.q(x), self.k(x), self.v(x)
        return (
            query.view(batch, count, -1 if self.turn == 1 else self.heads, self.width).transpose(1, 2),
            key.view(batch, count, self.shared, self.width).transpose(1, 2),
            value.view(batch, count, -1, self.width).transpose(1, 2),
        )

    def _repeated(self, x: Tensor) -> Tensor:
        batch, _, count, width = x.shape
        if self.way == "expand":
            wide = x[:, :, None].expand(batch, self.shared, self.heads // self.shared, count, width)
            return wide.reshape(batch, self.heads, count, width)
        return x.repeat_interleave(self.times, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = self._sides(tokens)
        if self.turn:
            query, key = (rotated(side, neighbours=self.turn == 2) for side in (query, key))
        if self.way == "operator":
            mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        elif self.way == "five":
            batch, _, count, width = query.shape
            query = query.reshape(batch, self.shared, self.times, count, width)
            scores = (query @ key[:, :, None].transpose(-1, -2) * 0.4).softmax(-1)
            mixed = (scores @ value[:, :, None]).reshape(batch, self.heads, count, width)
        else:
            key, value = self._repeated(key), self._repeated(value)
            if self.way == "products":
                mixed = (query @ key.transpose(-1, -2) * self.width**-0.5).softmax(-1) @ value
            else:
                mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = self.out(mixed.transpose(1, 2).reshape(*tokens.shape[:2], -1))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Decoder(nn.Module):
    """The decoder layer of PyTorch: its queries are not its keys."""

    def __init__(self, channels: int, heads: int, hidden: int, *, normed: bool) -> None:
        super().__init__()
        self.memory = nn.Linear(channels, channels)
        self.layer = nn.TransformerDecoderLayer(channels, heads, hidden, batch_first=True)
        if not normed:
            self.layer.norm1 = self.layer.norm2 = self.layer.norm3 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.layer(tokens, self.memory(tokens)).transpose(1, 2).reshape(x.shape)
