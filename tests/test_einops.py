"""Networks that rearrange, reduce and repeat with einops, whose caches hide where a size comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from tests.libraries import QUIET

pytestmark = QUIET

einops = pytest.importorskip("einops", reason="needs einops")
layers = pytest.importorskip("einops.layers.torch", reason="needs einops")


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, size**-0.5
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * size, bias=False)
        self.to_out = nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (einops.rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
        found = (q @ k.mT * self.scale).softmax(-1) @ v
        out: Tensor = self.to_out(einops.rearrange(found, "b h n d -> b n (h d)"))
        return out


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            layers.Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), nn.Linear(48, 24)
        )
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    Attention(24, heads, 8),
                    nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)),
                ]
            )
            for heads in (4, 4)  # of one size, so that a cache would take one block for the other
        )
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = torch.cat([einops.repeat(self.token, "1 1 d -> b 1 d", b=len(x)), x], 1)
        for block in self.blocks:
            attention, mlp = block  # type: ignore[misc]
            x = x + attention(x)
            x = x + mlp(x)
        out: Tensor = self.head(einops.reduce(x, "b n d -> b d", "mean"))
        return out


class LinearAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.qkv = nn.Conv2d(16, 96, 1, bias=False)
        self.out = nn.Sequential(nn.Conv2d(32, 16, 1), nn.GroupNorm(1, 16))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        height, width = x.shape[2:]
        q, k, v = (
            einops.rearrange(part, "b (h c) x y -> b h c (x y)", h=self.heads)
            for part in self.qkv(x).chunk(3, 1)
        )
        context = einops.einsum(k.softmax(-1), v, "b h d n, b h e n -> b h d e")
        found = einops.einsum(context, q.softmax(-2), "b h d e, b h d n -> b h e n")
        found = einops.rearrange(found, "b h c (x y) -> b (h c) x y", x=height, y=width)
        out: Tensor = self.head(self.out(found) + x)
        return out


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            layers.Rearrange("b c (h p) (w q) -> b (c p q) h w", p=2, q=2),
            nn.Conv2d(32, 16, 3, padding=1),
            nn.ReLU(),
            layers.Rearrange("b (c p q) h w -> b c (h p) (w q)", p=2, q=2),
            layers.Reduce("b c (h 2) (w 2) -> b c h w", "max"),
            layers.Rearrange("b c h w -> b (c h w)"),
            nn.Linear(4 * 64, 12),
            nn.ReLU(),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        wide = {"weight_shape": "t s", "bias_shape": "s", "t": 16, "s": 20}
        back = {"weight_shape": "s t", "bias_shape": "t", "t": 16, "s": 20}
        self.wide = layers.EinMix("b t c -> b s c", **wide)
        self.back = layers.EinMix("b s c -> b t c", **back)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = einops.rearrange(self.patches(x), "b c h w -> b (h w) c")
        x = x + self.back(self.wide(x).relu())
        out: Tensor = self.head(einops.reduce(x, "b t c -> b c", "max"))
        return out


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.randn(1, 2, 8))
        self.wide, self.narrow, self.head = nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        image = einops.rearrange(self.stem(x).relu(), "b c h w -> b h w c")
        tokens = einops.repeat(self.tokens, "1 n c -> b n c", b=len(x))
        both, shapes = einops.pack([tokens, image], "b * c")
        both = both + self.narrow(self.wide(both).relu())
        tokens, image = einops.unpack(both, shapes, "b * c")
        return self.head(tokens.mean(1)), self.head(einops.reduce(image, "b h w c -> b c", "mean"))


@lru_cache
def heads_of(width: int, size: int) -> tuple[int, int]:
    return width // size, size


class Cached(nn.Module):
    """Two attentions of one size, whose shapes a cached function of the user makes."""

    size = 4

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = layer(x)
            heads = x.unflatten(-1, heads_of(x.shape[-1], self.size)).transpose(1, 2)
            x = ((heads @ heads.mT).softmax(-1) @ heads).transpose(1, 2).flatten(-2)
        out: Tensor = self.head(x)
        return out


IMAGES = (2, 3, 16, 16)
NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "transformer": (
        Transformer,
        IMAGES,
        {
            "patches.1": 24,
            "blocks.0.0.to_qkv": 4,
            "blocks.0.1.1": 40,
            "blocks.1.0.to_qkv": 4,
            "blocks.1.1.1": 40,
        },
    ),
    "linear attention": (LinearAttention, IMAGES, {"stem": 16, "qkv": 4}),
    "pixels": (Pixels, IMAGES, {"net.0": 8, "net.3": 4, "net.8": 12}),
    "mixer": (Mixer, IMAGES, {"patches": 12, "wide": 20}),
    "packed": (Packed, IMAGES, {"stem": 8, "wide": 20}),
    "a cached function": (Cached, (2, 5, 6), {"first": 4, "second": 4}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_einops_are_free(name: str) -> None:
    build, shape, expected = NETWORKS[name]
    torch.manual_seed(0)
    net, x = build().eval(), torch.randn(shape)
    graph = sec.trace(net, x)
    assert {group.name: group.channels for group in graph.prunable} == expected
    half = {group.name: range(group.channels // 2) for group in graph.prunable}
    plan = sec.PruningPlan(graph, {name: tuple(kept) for name, kept in half.items()})
    small = sec.apply_plan(net, plan)
    check = sec.verify(net, small, plan, x)
    assert check.ok, check
    torch.utils._pytree.tree_map(lambda out: out.sum().backward(retain_graph=True), small.train()(x))
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_caches_are_put_back() -> None:
    before: dict[str, Any] = {"einops": einops.einops._reconstruct_from_shape, "own": heads_of}
    net = Cached().eval()
    sec.trace(net, torch.randn(2, 5, 6))
    assert before == {"einops": einops.einops._reconstruct_from_shape, "own": heads_of}
    assert hasattr(heads_of, "cache_info")
