"""Decoder language models as people write them: each is cut twice and compared with zeroed columns.

There are no normalisations here, so that the answer is the original with the columns of removed channels
set to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur.errors import TraceError
from tests.graph.test_operators import double
from tests.graph.test_silent_errors import zeroed
from tests.graph.test_traps import in_rounds, scattered

WIDTH, HEADS, STEPS, WORDS = 16, 4, 5, 11


class Model(nn.Module):
    """Embeddings, blocks ``x + attention(x)`` and ``x + mlp(x)``, and a head that shares its weight."""

    def __init__(self, *parts: nn.Module, tied: bool = True) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(12, WIDTH)
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.wte(words) + self.wpe(torch.arange(words.shape[1]) + 2)
        for part in self.parts:
            x = x + part(x)
        return 30 * torch.tanh(self.head(x) / 30)


class Gated(nn.Module):
    """A gated unit of which both halves are one layer."""

    def __init__(self, hidden: int = 10) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(WIDTH, 2 * hidden, bias=False), nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(one) * two)


def rotate_half(x: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return torch.cat((-two, one), dim=-1)


def tables(width: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(12.0), 100 ** (-torch.arange(0, width, 2) / width))
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def causal(scores: Tensor) -> Tensor:
    steps = scores.shape[-1]
    return scores + torch.full((steps, steps), float("-inf"), dtype=scores.dtype).triu(1)


class Grouped(nn.Module):
    """Grouped queries, rotary embeddings of a part of each head, sinks and a soft cap."""

    def __init__(
        self,
        shared: int = 2,
        sinks: bool = False,
        interleaved: bool = False,
        part: int = 4,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.shared, self.width, self.part = HEADS, shared, 4, part
        self.q, self.kv = nn.Linear(WIDTH, HEADS * 4), nn.Linear(WIDTH, 2 * shared * 4)
        self.out, self.interleaved, self.scaled = nn.Linear(HEADS * 4, WIDTH), interleaved, scaled
        self.sinks = nn.Parameter(torch.randn(HEADS)) if sinks else None
        cos, sin = tables(part)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def turned(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[: x.shape[1], None], self.sin[: x.shape[1], None]
        first, rest = x[..., : self.part], x[..., self.part :]
        return torch.cat((first * cos + rotate_half(first) * sin, rest), dim=-1)

    def repeated(self, x: Tensor) -> Tensor:
        times = self.heads // self.shared
        if self.interleaved:
            return x.repeat_interleave(times, dim=2)
        batch, steps, shared, width = x.shape
        return x[:, :, :, None].expand(batch, steps, shared, times, width).reshape(batch, steps, -1, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        q = self.turned(self.q(x).view(batch, steps, self.heads, self.width))
        k, v = self.kv(x).chunk(2, dim=-1)
        k = self.repeated(self.turned(k.view(batch, steps, self.shared, self.width)))
        v = self.repeated(v.view(batch, steps, self.shared, self.width))
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / (math.sqrt(self.width) if self.scaled else 2)
        scores = causal(5 * torch.tanh(scores / 5))
        if self.sinks is not None:
            sinks = self.sinks.reshape(1, -1, 1, 1).expand(batch, -1, steps, -1)
            weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        return self.out((weights @ v.transpose(1, 2)).transpose(1, 2).reshape(batch, steps, -1))


class Sliced(nn.Module):
    """Queries, keys and values of one layer, cut apart where an object that all layers share says."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config, self.head_dim, self.groups = config, 4, config.key_heads
        self.qkv, self.out = nn.Linear(WIDTH, (HEADS + 2 * config.key_heads) * 4), nn.Linear(HEADS * 4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        qkv = self.qkv(x)
        end = self.config.heads * self.head_dim
        q, k = qkv[..., :end], qkv[..., end : end + self.groups * self.head_dim]
        v = qkv[..., end + self.groups * self.head_dim :]
        q, k, v = (y.view(batch, steps, -1, self.head_dim).transpose(1, 2) for y in (q, k, v))
        q = torch.cat([q[..., : self.head_dim].sin(), q[..., self.head_dim :]], -1)  # the second is empty
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(batch, steps, -1))


class Latent(nn.Module):
    """Keys and values from a few numbers; rotary embeddings as complex numbers beside the rest of a head."""

    def __init__(self, latent: int = 6, plain: int = 4, turned: int = 2, width: int = 3) -> None:
        super().__init__()
        self.latent, self.plain, self.turned, self.width = latent, plain, turned, width
        self.q = nn.Linear(WIDTH, HEADS * (plain + turned))
        self.down, self.up = nn.Linear(WIDTH, latent + turned), nn.Linear(latent, HEADS * (plain + width))
        self.out, self.scale = nn.Linear(HEADS * width, WIDTH), (plain + turned) ** -0.5

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1], dtype=x.dtype).view(1, -1, 1, 1)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        q = self.q(x).view(batch, steps, HEADS, self.plain + self.turned)
        q, turned = torch.split(q, [self.plain, self.turned], dim=-1)
        low, key = torch.split(self.down(x), [self.latent, self.turned], dim=-1)
        both = self.up(low).view(batch, steps, HEADS, self.plain + self.width)
        k, v = torch.split(both, [self.plain, self.width], dim=-1)
        q = torch.cat([q, self.rotated(turned)], -1)
        k = torch.cat([k, self.rotated(key.unsqueeze(2)).expand(-1, -1, HEADS, -1)], -1)
        scores = causal(torch.einsum("bshd,bthd->bhst", q, k) * self.scale)
        return self.out(torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v).flatten(2))


class Experts(nn.Module):
    """A mixture of experts: tokens are sent to experts in one of several ways.

    Args:
        way: ``"where"``, ``"mask"``, ``"one_hot"`` or ``"dense"``.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.router, self.way = nn.Linear(WIDTH, 3, bias=False), way
        self.experts = nn.ModuleList(Gated(6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        weights, chosen = torch.topk(self.router(x).softmax(-1), 2)
        result = torch.zeros_like(x)
        if self.way == "dense":
            full = weights.new_zeros(len(x), 3).scatter(1, chosen, weights)
            return sum(full[:, i : i + 1] * each(x) for i, each in enumerate(self.experts)).view(shape)
        hot = F.one_hot(chosen, num_classes=3).permute(2, 1, 0)
        for number, each in enumerate(self.experts):
            if self.way == "mask":
                mine = chosen[:, 0] == number
                result[mine] = each(x[mine]) * weights[mine, :1]
            elif self.way == "one_hot":
                place, token = torch.where(hot[number])
                current = x[None, token].reshape(-1, shape[-1])
                result.index_add_(0, token, each(current) * weights[token, place, None])
            else:
                token, place = torch.where(chosen == number)
                result[token] += weights[token, place, None] * each(x[token])
        return result.view(shape)


WORDS_IN = (2, STEPS)
CONFIG = SimpleNamespace(heads=HEADS, key_heads=2)
MOE = {f"parts.1.experts.{number}.w12": 6 for number in range(3)}

MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "grouped queries": (lambda: Model(Grouped(), Gated()), {"wte": 16, "parts.0.q": 2, "parts.1.w12": 10}),
    "repeated in place": (
        lambda: Model(Grouped(interleaved=True), Gated()),
        {"wte": 16, "parts.0.q": 2, "parts.1.w12": 10},
    ),
    "sinks": (lambda: Model(Grouped(sinks=True)), {"wte": 16, "parts.0.q": 2}),
    "a part of each head turns": (lambda: Model(Grouped(HEADS, part=2)), {"wte": 16, "parts.0.q": 4}),
    "one layer cut apart": (
        lambda: Model(Sliced(CONFIG), Sliced(CONFIG), tied=False),
        {"wte": 16, "parts.0.qkv": 2},
    ),
    "experts by where": (lambda: Model(Gated(8), Experts("where")), {"wte": 16, "parts.0.w12": 8} | MOE),
    "experts by masks": (lambda: Model(Gated(8), Experts("mask")), {"wte": 16, "parts.0.w12": 8} | MOE),
    "experts by one_hot": (lambda: Model(Gated(8), Experts("one_hot")), {"wte": 16, "parts.0.w12": 8} | MOE),
    "all experts": (lambda: Model(Gated(8), Experts("dense")), {"wte": 16, "parts.0.w12": 8} | MOE),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MODELS)
def test_a_decoder(name: str) -> None:
    make, groups = MODELS[name]
    in_rounds(double(make()), torch.randint(0, WORDS, WORDS_IN), groups)


def test_rows_of_complex_numbers_begin_at_even_places() -> None:
    model, words = Model(Latent()).double().eval(), torch.randint(0, WORDS, WORDS_IN)
    graph = sec.trace(model, words)
    assert graph["parts.0.down"].channels == 3  # six numbers beside two that turn, in pairs
    plan = sec.plan_from(graph, {"parts.0.down": [1], "wte": [0, 5]})
    small = sec.apply_plan(model, plan)
    assert small.parts[0].down.out_features == 6
    assert sec.verify(model, small, plan, words, tolerance=1e-9).ok


class Shared(nn.Module):
    """Attention that is given its tables, as layers with one rotary embedding are."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.width, self.scale = nn.Linear(WIDTH, WIDTH), 8, 8**-0.5

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], -1, self.width).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (y * cos + rotate_half(y) * sin for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], -1))


class Rotary(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.wte, self.parts = nn.Embedding(WORDS, WIDTH), nn.ModuleList(Shared() for _ in range(layers))
        cos, sin = tables(8)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        x = self.wte(words)
        for part in self.parts:
            x = x + part(x, self.cos[: words.shape[1]], self.sin[: words.shape[1]])
        return self.head(x)


@pytest.mark.parametrize("layers", [1, 4])
def test_whole_heads_come_before_widths_that_all_layers_share(layers: int) -> None:
    model, words = Rotary(layers).eval(), torch.randint(0, WORDS, WORDS_IN)
    heads, widths = sec.trace(model, words), sec.trace(model, words, attention="head_dim")
    assert [heads[f"parts.{layer}.q"].channels for layer in range(layers)] == [2] * layers
    assert widths["parts.0.q"].channels == 4  # pairs of numbers within every head of every layer
    assert "parts.1.q" not in widths


class Multiplied(nn.Module):
    """Experts whose weights are stacked, each multiplied with its run of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 2 * 24, WIDTH) / 4)
        self.down = nn.Parameter(torch.randn(3, WIDTH, 24) / 4)
        self.router = nn.Linear(WIDTH, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        weight, chosen = self.router(x).softmax(-1).max(-1)
        order = chosen.argsort(stable=True)
        ends = F.one_hot(chosen, 3).sum(0).cumsum(0, dtype=torch.int32)
        one, two = torch._grouped_mm(x[order], self.up.transpose(1, 2), ends).chunk(2, -1)
        y = torch._grouped_mm(F.silu(one) * two, self.down.transpose(1, 2), ends)
        return (torch.zeros_like(x).index_copy(0, order, y) * weight[:, None]).view(shape)


def test_experts_multiplied_at_once_lose_runs_of_hidden_units() -> None:
    model, words = Model(Multiplied()).to(torch.bfloat16).eval(), torch.randint(0, WORDS, WORDS_IN)
    graph = sec.trace(model, words)
    # The operator wants rows of a multiple of 16 bytes, which are eight numbers.
    assert {group.name: group.channels for group in graph.prunable} == {"wte": 2, "parts.0": 3}
    plan = sec.PruningPlan(graph, {"parts.0": [0, 2]})
    small = sec.apply_plan(model, plan)
    silent = zeroed(model, graph, {"parts.0": [0, 2]})
    torch.testing.assert_close(small(words), silent(words), rtol=0.02, atol=0.02)
    assert small.parts[0].up.shape == (3, 32, WIDTH)
    assert sec.verify(model, small, plan, words).ok
    assert sec.verify(model, small, plan, words).precision == "float64"
    assert plan.cost_after == sec.cost(small, words)


class Causal(nn.Module):
    """Layers of PyTorch that ask whether the mask they are given is causal."""

    def __init__(self, decodes: bool) -> None:
        super().__init__()
        self.wte, self.decodes, self.head = nn.Embedding(WORDS, WIDTH), decodes, nn.Linear(WIDTH, WORDS)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(12))
        kind = nn.TransformerDecoderLayer if decodes else nn.TransformerEncoderLayer
        layer = kind(WIDTH, HEADS, 20, batch_first=True, norm_first=decodes)
        stack = nn.TransformerDecoder if decodes else nn.TransformerEncoder
        self.layers = stack(layer, 2)

    def forward(self, words: Tensor) -> Tensor:
        x, steps = self.wte(words), words.shape[1]
        if self.decodes:
            mask = nn.Transformer.generate_square_subsequent_mask(steps)
            return self.head(self.layers(x, x.flip(1), tgt_mask=mask))
        return self.head(self.layers(x, mask=self.mask[:steps, :steps]))


@pytest.mark.parametrize("decodes", [True, False])
def test_code_may_ask_whether_a_mask_is_causal(decodes: bool) -> None:
    model, words = Causal(decodes).eval(), torch.randint(0, WORDS, WORDS_IN)
    graph = sec.trace(model, words)
    hidden = {f"layers.layers.{layer}.linear1": 20 for layer in (0, 1)}
    assert {group.name: group.channels for group in graph.prunable} == {"wte": HEADS} | hidden
    plan = scattered(graph, 0)
    assert sec.verify(model, sec.apply_plan(model, plan), plan, words).ok


class Answers(nn.Module):
    """Code that asks a tensor made of inputs, or of a parameter."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.a, self.b, self.of = nn.Linear(6, 8), nn.Linear(8, 3), of
        self.register_buffer("limit", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        asked = {"input": x, "parameter": self.b.bias, "constant": self.limit * torch.ones(3)}[self.of]
        return self.b(x.tanh() if (asked > 0).all() else x.relu())


def test_only_constants_are_asked() -> None:
    x = torch.randn(4, 6)
    assert sec.trace(Answers("constant").eval(), x)["a"].reason is None
    for of in ("input", "parameter"):
        with pytest.raises(TraceError, match="branches on the values of a tensor"):
            sec.trace(Answers(of).eval(), x)
