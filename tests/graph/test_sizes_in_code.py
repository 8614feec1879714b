"""Networks that take sizes from shapes and attributes, held against the original with zeroed columns."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur.checkpoint import load, save
from secateur.graph.capture.program import ExampleInputs
from tests.graph import sized_blocks as blocks
from tests.graph.test_random_networks import trains
from tests.graph.test_traps import in_rounds
from tests.graph.trap_networks import Between

PICTURE = (2, 3, 4, 4)


class Lines(nn.Module):
    """A linear layer, something in between, and a linear layer."""

    def __init__(self, between: Callable[[Tensor], Tensor], made: int, read: int) -> None:
        super().__init__()
        self.one, self.head, self.between = nn.Linear(3, made), nn.Linear(read, 4), between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(torch.tanh(self.one(x))))


class Pieces(nn.Module):
    """Two pieces of unequal sizes, cut from the front, from the end, or by length."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.one, self.head, self.tail = nn.Linear(3, 9), nn.Linear(5, 4), nn.Linear(4, 4)
        self.way, self.first = way, 5

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.one(x))
        if self.way == "end":
            parts = y[:, -self.first :], y[:, : -self.first]
        else:
            parts = y.narrow(1, 0, self.first), y.narrow(1, self.first, y.shape[1] - self.first)
        return self.head(parts[0]) + self.tail(parts[1].square())


class GivenState(nn.Module):
    """A recurrent layer that starts from zeros of a size that the network itself knows."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head, self.hidden = kind(3, 6, batch_first=True), nn.Linear(6, 2), 6

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(self.rnn.num_layers, x.size(0), self.hidden, dtype=x.dtype)
        return self.head(self.rnn(x, (state, state) if isinstance(self.rnn, nn.LSTM) else state)[0][:, -1])


class PixelsOfAttributes(nn.Module):
    """Numbers laid out as pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head, self.c, self.w = nn.Linear(3, 128), nn.ConvTranspose2d(8, 3, 2, 2), 8, 4

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x).tanh().view(x.shape[0], self.c, self.w, self.w))


class Cross(nn.Module):
    """The multi-head attention of PyTorch whose keys are its values, but not its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        query, key = self.one(x), self.two(y)
        return self.head(query + self.attention(query, key, key, need_weights=False)[0])


class SharedBias(nn.Module):
    """Two layers of attention that add one table of position biases to their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.bias = nn.Linear(3, 8), nn.Linear(8, 4), nn.Embedding(7, 4)
        self.sides = nn.ModuleList(nn.Linear(8, 3 * 12, bias=False) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(12, 8) for _ in range(2))
        self.heads, self.width, self.inner = 4, 3, 12

    def forward(self, x: Tensor) -> Tensor:
        x, place = self.embed(x), torch.arange(x.shape[1])
        bias = self.bias((place[None] - place[:, None]).clamp(-3, 3) + 3).permute(2, 0, 1).unsqueeze(0)
        for sides, out in zip(self.sides, self.outs, strict=True):
            shape = (x.shape[0], -1, self.heads, self.width)
            query, key, value = (side.view(shape).transpose(1, 2) for side in sides(x).chunk(3, -1))
            mixed = (query @ key.transpose(-1, -2) + bias).softmax(-1) @ value
            x = x + out(mixed.transpose(1, 2).contiguous().view(x.shape[0], -1, self.inner))
        return self.head(x)


class Areas(nn.Module):
    """Attention within parts of a picture, beside a depthwise convolution of the values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 24, 1), nn.Conv2d(8, 3, 1)
        self.proj, self.pe = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.area, self.heads, self.width = 4, 4, 2

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.embed(x)
        batch, channels, height, width = x.shape
        count = height * width // self.area
        qkv = self.qkv(x).flatten(2).transpose(1, 2).reshape(batch * self.area, count, channels * 3)
        qkv = qkv.view(batch * self.area, count, self.heads, self.width * 3).permute(0, 2, 3, 1)
        query, key, value = qkv.split([self.width, self.width, self.width], dim=2)
        mixed = value @ (query.transpose(-2, -1) @ key * self.width**-0.5).softmax(-1).transpose(-2, -1)
        mixed, value = (
            side.permute(0, 3, 1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
            for side in (mixed, value)
        )
        return self.head(first + self.proj(mixed.contiguous() + self.pe(value.contiguous())))


class Shuffled(nn.Module):
    """Channels that are dealt out to four groups; the number of groups stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).tanh()
        batch, channels, height, width = x.shape
        dealt = x.view(batch, 4, channels // 4, height, width).transpose(1, 2)
        return self.head(dealt.reshape(batch, channels, height, width))


class LinearAttention(nn.Module):
    """Attention without a soft-max over positions; the code fixes the number of heads, not their width."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 32) for _ in range(3))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        query, key, value = (
            side(x).reshape(batch, count, 4, -1).transpose(1, 2) for side in (self.q, self.k, self.v)
        )
        mixed = query.sigmoid() @ (key.sigmoid().transpose(-2, -1) @ value)
        return self.head(mixed.transpose(1, 2).reshape(batch, count, -1))


class Entries(nn.Module):
    """A width in a dict."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.sizes, self.one, self.head = sizes, nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x).tanh().view(-1, self.sizes["hidden"]))


class OneKey(nn.Module):
    """Every head of queries reads the same keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.kv, self.head = (
            nn.Linear(*size) for size in ((3, 8), (8, 12), (8, 6), (12, 4))
        )
        self.heads, self.width = 4, 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, count, _ = x.shape
        query = self.q(x).view(batch, count, self.heads, self.width).transpose(1, 2)
        sides = self.kv(x).view(batch, count, 2, self.width).unsqueeze(3).permute(2, 0, 3, 1, 4)
        key, value = sides.expand(2, batch, self.heads, count, self.width).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.head(mixed.transpose(1, 2).reshape(batch, count, -1))


def padded(way: int) -> Callable[[], nn.Module]:
    """A network with a shortcut that is filled up with zeros."""
    return lambda: Between(blocks.ZeroChannels(nn.Conv2d(8, 12, 1), 12, way), 12)


def grouped(way: str, heads: tuple[int, int], turn: int) -> Callable[[], nn.Module]:
    """A network with grouped queries: a head is six wide, fewer or more than there are heads."""
    return lambda: Between(blocks.GroupedQueries(8, heads, 6, way, turn=turn), 8)


class Thirds(nn.Module):
    """Every third channel meets the two behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::3] + x[:, 1::3] * x[:, 2::3]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "shuffled": (Shuffled, PICTURE, {"one": 6}),
    **{
        f"blurred, {number}": (
            lambda number=number: Between(blocks.Blur(2, 8, number), 8),
            PICTURE,
            {"conv": 8},
        )
        for number in range(5)
    },
    **{f"zeros, {way}": (padded(way), PICTURE, {"conv": 8, "between.body": 4}) for way in range(4)},
    **{
        f"alternating, {way}": (
            lambda way=way: Between(blocks.Alternating(way), 8 if way == 2 else 4),
            PICTURE,
            {"conv": 4},
        )
        for way in range(3)
    },
    "every third": (lambda: Between(Thirds(), 3, 9), PICTURE, {"conv": 3}),
    "state of zeros": (
        lambda: Between(blocks.ConvolutionalState(nn.Conv2d(14, 12, 3, padding=1), 6), 6),
        PICTURE,
        {"conv": 8, "between.gates": 6},
    ),
    "lstm from zeros": (lambda: GivenState(nn.LSTM), (2, 5, 3), {"rnn": 6}),
    "gru from zeros": (lambda: GivenState(nn.GRU), (2, 5, 3), {"rnn": 6}),
    "unflattened": (
        lambda: nn.Sequential(nn.Linear(3, 128), nn.Unflatten(1, (8, 4, 4)), nn.ConvTranspose2d(8, 3, 2, 2)),
        (2, 3),
        {"0": 8},
    ),
    "pixels": (PixelsOfAttributes, (2, 3), {"one": 8}),
    "pieces from the end": (lambda: Pieces("end"), (2, 3), {"one": 4, "one#2": 5}),
    "pieces by length": (lambda: Pieces("narrow"), (2, 3), {"one": 5, "one#2": 4}),
    "decoder": (
        lambda: Between(blocks.Decoder(8, 4, 6, normed=False), 8),
        PICTURE,
        {"conv": 4, "between.layer.linear1": 6},
    ),
    "shared bias": (SharedBias, (2, 5, 3), {"embed": 8, "bias": 4}),
    "areas": (Areas, PICTURE, {"embed": 4}),
    "one key": (OneKey, (2, 5, 3), {"embed": 8, "q": 4}),
    **{
        f"grouped queries, {way}, {heads}, {turn}": (
            grouped(way, heads, turn),
            PICTURE,
            {"conv": 8, "between.qkv" if way == "fused" else "between.q": heads[1]},
        )
        for way in blocks.WAYS
        for heads, turn in (((4, 2), 0), ((8, 2), 1), ((6, 3), 2))
    },
}


def test_heads_lose_width_where_the_code_fixes_their_number() -> None:
    model, x = LinearAttention().eval(), torch.randn(2, 5, 3)
    graph = sec.trace(model, x)
    assert {group.name: group.channels for group in graph.prunable} == {"q": 8, "v": 8}
    plan = sec.plan_from(graph, {"q": [0, 5, 6], "v": [3]})
    small = sec.apply_plan(model, plan)
    assert (small.q.out_features, small.v.out_features) == (4 * 5, 4 * 7)
    assert sec.verify(model, small, plan, x).ok


def test_an_entry_of_a_shared_dict_follows_and_is_saved(tmp_path: Path) -> None:
    sizes = {"hidden": 8}
    model, x = Entries(sizes), torch.randn(2, 3)
    small = in_rounds(model.double().eval(), x.double(), {"one": 8})
    assert small.sizes["hidden"] == small.one.out_features < 8
    assert model.sizes is sizes == {"hidden": 8}
    model.sizes["seen"] = 5
    save(tmp_path / "whole.safetensors", model)
    again = load(tmp_path / "whole.safetensors", model=Entries({"hidden": 8}))
    assert again.sizes == {"hidden": 8, "seen": 5}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_code_takes_its_sizes_from_follows(name: str) -> None:
    make, shape, groups = NETWORKS[name]
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    trains(in_rounds(make().double().eval(), x, groups), x)


def test_queries_that_are_not_the_keys() -> None:
    inputs = tuple(torch.randn(2, *shape, dtype=torch.float64) for shape in ((4, 3), (6, 5)))
    small = in_rounds(Cross().double().eval(), inputs, {"one": 4})
    assert small.attention.num_heads * 2 == small.attention.embed_dim == small.two.out_features


def test_queries_that_are_learned() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.two, self.head = (
                nn.Parameter(torch.randn(4, 8)),
                nn.Linear(3, 8),
                nn.Linear(8, 4),
            )
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            key = self.two(x)
            query = self.query.unsqueeze(0).expand(x.shape[0], -1, -1)
            return self.head(self.attention(query, key, key)[0])

    small = in_rounds(
        Learned().double().eval(),
        torch.randn(2, 6, 3, dtype=torch.float64),
        {"two": 4, "attention.out_proj": 8},
    )
    assert small.query.shape == (4, small.two.out_features)


def half(model: nn.Module, inputs: ExampleInputs) -> nn.Module:
    """The network with half of every group."""
    graph = sec.trace(model, inputs)
    kept = {group.name: range(0, group.channels, 2) for group in graph.prunable}
    return sec.apply_plan(model, sec.PruningPlan(graph, kept))


def test_an_encoder_and_a_decoder_lose_whole_heads() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 16), nn.Linear(3, 16), nn.Linear(16, 2)
            self.inner = nn.Transformer(16, 4, 1, 1, 12, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(self.one(x), self.two(x.flip(1))))

    model, x = Both().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    graph = sec.trace(model, x)
    assert [group.channels for group in graph.prunable] == [4, 12, 12]
    small = half(model, x)
    assert small.inner.d_model == small.one.out_features == 8
    assert small.inner.encoder.layers[0].self_attn.num_heads == 2
    with torch.no_grad():  # a network of these sizes, made by PyTorch, gives the same
        fresh = Both().double().eval()
        fresh.one, fresh.two, fresh.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)
        fresh.inner = nn.Transformer(8, 2, 1, 1, 6, batch_first=True)
        fresh.double().eval().load_state_dict(small.state_dict())
        torch.testing.assert_close(small(x), fresh(x), rtol=1e-12, atol=1e-12)


def test_a_shared_configuration_follows_and_is_saved(tmp_path: Path) -> None:
    class Configured(nn.Module):
        def __init__(self, config: SimpleNamespace) -> None:
            super().__init__()
            self.config, self.conv = config, nn.Conv2d(3, 8, 1)
            self.blur = blocks.Blur(2, 8, 4)
            self.blur.config, self.head = config, nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blur(self.conv(x)))

    config = SimpleNamespace(channels=8, name="small")
    model, x = Configured(config).eval(), torch.randn(PICTURE)
    small = half(model, x)
    assert (config.channels, model.config.channels) == (8, 8)
    assert small.config is small.blur.config
    assert small.config.channels == 4
    save(tmp_path / "small.safetensors", small)
    again = load(tmp_path / "small.safetensors", model=Configured(copy.copy(config)))
    assert torch.equal(again(x), small(x))


@pytest.mark.parametrize("sized", [lambda y: (y.shape[-1],), lambda _: (8,)])
def test_a_normalisation_over_a_size_from_the_code(sized: Callable[[Tensor], tuple[int, ...]]) -> None:
    model = Lines(lambda y: F.layer_norm(y, sized(y)), 8, 8).double().eval()
    graph = sec.trace(model, torch.randn(2, 3, dtype=torch.float64))
    assert [group.name for group in graph.prunable] == (["one"] if sized(torch.zeros(1, 3)) == (3,) else [])


@pytest.mark.parametrize(
    "scaled",
    [
        lambda y: y / y.shape[-1] ** 0.5,
        lambda y: y * y.shape[-1] ** -0.5,
        lambda y: y * (2 / y.shape[-1]),
        lambda y: F.normalize(y, dim=-1) * y.shape[-1] ** 0.5,
        lambda y: y - y.mean(-1, keepdim=True) / y.shape[-1],
    ],
)
def test_a_factor_made_from_a_width_keeps_the_width(scaled: Callable[[Tensor], Tensor]) -> None:
    graph = sec.trace(Lines(scaled, 8, 8).double().eval(), torch.randn(2, 3, dtype=torch.float64))
    assert str(graph["one"].reason).startswith("a factor in the code changes with the width (")


@pytest.mark.parametrize(
    "scaled",
    [
        lambda y: y / math.sqrt(y.shape[-1]),
        lambda y: y * float(y.shape[-1]),
        lambda y: y * np.sqrt(y.shape[-1]),
        lambda y: y + math.log(y.shape[-1]),
    ],
)
def test_a_factor_that_plain_functions_make_from_a_width_is_named(scaled: Callable[[Tensor], Tensor]) -> None:
    graph = sec.trace(Lines(scaled, 8, 8).double().eval(), torch.randn(2, 3, dtype=torch.float64))
    assert re.search(
        r"; a factor in the code changes with the width \((div|mul|add)\)$", str(graph["one"].reason)
    )


def test_a_factor_that_is_stored_is_no_obstacle() -> None:
    scale = 8**-0.5
    x = torch.randn(2, 3, dtype=torch.float64)
    in_rounds(Lines(lambda y: y * scale, 8, 8).double().eval(), x, {"one": 8})


@pytest.mark.parametrize(
    "mean",
    [
        lambda y: y.sum(-1, keepdim=True) / y.shape[-1],
        lambda y: y.norm(2, dim=-1, keepdim=True) * y.shape[-1] ** -0.5,
        lambda y: y.square().sum(-1, keepdim=True).sqrt() / y.shape[-1] ** 0.5,
    ],
)
def test_a_sum_over_channels_divided_by_their_number_is_a_mean(mean: Callable[[Tensor], Tensor]) -> None:
    model = Lines(lambda y: y / (mean(y).abs() + 2), 8, 8).double().eval()
    x, kept = torch.randn(2, 3, dtype=torch.float64), [0, 3, 4, 6, 7]
    graph = sec.trace(model, x)
    assert graph["one"].prunable
    small = sec.apply_plan(model, sec.PruningPlan(graph, {"one": kept}))
    with torch.no_grad():
        y = torch.tanh(F.linear(x, model.one.weight[kept], model.one.bias[kept]))
        wanted = F.linear(y / (mean(y).abs() + 2), model.head.weight[:, kept], model.head.bias)
        torch.testing.assert_close(small(x), wanted, rtol=1e-12, atol=1e-12)


def test_a_normalisation_in_groups_of_an_attribute() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head, self.groups = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1), 6

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.group_norm(self.conv(x), self.groups))

    model, x = Grouped().double().eval(), torch.randn(PICTURE, dtype=torch.float64)
    assert sec.trace(model, x)["conv"].channels == 6
    small = half(model, x)
    assert (small.groups, small.conv.out_channels) == (3, 6)
    kept = [0, 1, 4, 5, 8, 9]
    with torch.no_grad():
        y = F.group_norm(F.conv2d(x, model.conv.weight[kept], model.conv.bias[kept]), 3)
        wanted = F.conv2d(y, model.head.weight[:, kept], model.head.bias)
        torch.testing.assert_close(small(x), wanted, rtol=1e-12, atol=1e-12)


class Products(nn.Module):
    """A convolution whose output is flattened to a product of attributes."""

    def __init__(self, size: Callable[[Products], int]) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8 * 64, 4)
        self.channels, self.side, self.square = 8, 8, 64
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).view(-1, self.size(self)))


@pytest.mark.parametrize(
    "size",
    [
        lambda net: net.channels * net.side * net.side,
        lambda net: net.side * net.channels * net.side,
        lambda net: net.channels * net.side**2,
        lambda net: net.channels * net.square,
    ],
)
def test_one_width_in_a_product_of_attributes(size: Callable[[Products], int]) -> None:
    torch.manual_seed(0)
    net, x = Products(size), torch.randn(2, 3, 16, 16)
    graph = sec.trace(net, x)
    assert graph["conv"].reason is None
    plan = sec.plan_from(graph, {"conv": [0, 3, 4]})
    small = sec.apply_plan(net, plan)
    assert (small.channels, small.side, small.square) == (5, 8, 64)
    assert sec.verify(net, small, plan, x).ok
    with torch.no_grad():
        net.head.weight.unflatten(1, (8, 64))[:, [0, 3, 4]] = 0
    torch.testing.assert_close(small(x), net(x))


class Fields(nn.Module):
    """Embeddings of several fields, side by side."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8 * fields, 4)
        self.fields, self.size = fields, 8

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(x)).view(-1, self.fields * self.size))


def test_the_width_of_embeddings_side_by_side() -> None:
    net, x = Fields(3), torch.randint(0, 20, (5, 3))
    plan = sec.plan_from(sec.trace(net, x), {"table": [1, 2]})
    small = sec.apply_plan(net, plan)
    assert (small.fields, small.size, small.head.in_features) == (3, 6, 18)
    assert sec.verify(net, small, plan, x).ok


def test_two_factors_of_one_value_are_not_guessed() -> None:
    """Either of them may be the width, so the channels stay."""
    graph = sec.trace(Fields(8), torch.randint(0, 20, (5, 8)))
    reason = graph["table"].reason
    assert reason is not None
    assert "a size in the code cannot follow" in reason
