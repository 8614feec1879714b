"""Predicted costs of attention, held against what is counted on the cut network and by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec


class Windowed(nn.Module):
    """Attention within shifted windows, by functions that take every size from a shape or an argument."""

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.randn(heads, window**2, window**2))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        side = self.window
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(batch, height // side, side, width // side, side, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, channels)
        qkv = self.qkv(x).reshape(x.size(0), x.size(1), 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query = query * (channels // self.heads) ** -0.5
        weight = (query.matmul(key.transpose(-2, -1)) + self.bias).softmax(-1)
        x = weight.matmul(value).transpose(1, 2).reshape(x.size(0), x.size(1), channels)
        x = self.proj(x).view(batch, height // side, width // side, side, side, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
        return torch.roll(x, (self.shift, self.shift), (1, 2))


class Stage(nn.Module):
    """Patches, two blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 2, stride=2)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.blocks = nn.ModuleList(Windowed(12, 3, 2, shift) for shift in (0, 1))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x.mean((1, 2)))


def macs(channels: int, inner: int, heads: int) -> int:
    """Counted by hand: 16 positions in 4 windows of 4, in two blocks."""
    attention = 2 * 4 * heads * 4 * 4 * (inner // heads)
    return 16 * channels * 3 * 4 + 2 * (16 * channels * 4 * inner + attention) + channels * 4


def test_windowed_attention_costs_what_is_predicted() -> None:
    model, x = Stage().eval(), torch.randn(2, 3, 8, 8)
    graph = sec.trace(model, x)
    assert graph.cost() == sec.cost(model, x)
    assert graph.cost().macs == macs(12, 12, 3)
    for removed in (1, 2):
        plan = sec.PruningPlan(graph, {g.name: tuple(range(removed, g.channels)) for g in graph.prunable})
        small = sec.apply_plan(model, plan)
        assert plan.channels_removed
        assert sec.verify(model, small, plan, x).ok
        assert plan.cost_after == sec.cost(small, x)
        heads = small.blocks[0].heads
        assert plan.cost_after.macs == macs(small.head.in_features, small.blocks[0].proj.in_features, heads)


class Folded(nn.Module):
    """Heads folded into the batch, which is then no divisor of anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.out, self.head = nn.Linear(5, 12), nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        side = self.side(x).view(batch, count, -1, 3).transpose(1, 2).reshape(-1, count, 3)
        mixed = torch.bmm(torch.bmm(side, side.transpose(1, 2)).softmax(-1), side)
        mixed = mixed.view(batch, -1, count, 3).transpose(1, 2).reshape(batch, count, -1)
        return self.head(F.relu(self.out(mixed)))


def test_work_over_heads_folded_into_the_batch_is_shared_out_over_examples() -> None:
    model, x = Folded().eval(), torch.randn(7, 2, 5)
    graph = sec.trace(model, x)
    assert graph.cost().macs == 2 * (5 * 12 + 12 * 5 + 5 * 3) + 2 * 4 * 2 * 2 * 3
    plan = sec.PruningPlan(graph, {group.name: (0, 2) for group in graph.prunable})
    assert plan.cost_after == sec.cost(sec.apply_plan(model, plan), x)


class Picturewise(nn.Module):
    """Channels folded into the batch: a convolution is run once for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shared, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(1, 1, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.shared(x.reshape(-1, 1, 4, 4)).view(len(x), -1, 2, 2)
        return self.head(x)


def test_work_over_channels_folded_into_the_batch_follows_them() -> None:
    model, x = Picturewise().eval(), torch.randn(5, 3, 4, 4)
    graph = sec.trace(model, x)
    assert graph.cost().macs == 16 * 3 * 6 + 6 * 4 * 9 + 4 * 6 * 2
    for group in graph.prunable:
        plan = sec.PruningPlan(graph, {group.name: (0, 2)})
        assert plan.cost_after == sec.cost(sec.apply_plan(model, plan), x)
