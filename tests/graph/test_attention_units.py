"""What is removed from attention: whole heads, query heads of shared keys and values, places in heads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur.errors import UsageError
from secateur.graph import Role
from secateur.graph.checking.compare import largest_difference
from secateur.graph.cutting.tensors import named_tensors
from tests.graph.outputs import evaluate
from tests.graph.test_decoders import CONFIG, HEADS, STEPS, WIDTH, WORDS, Grouped, Model, Rotary, Sliced
from tests.graph.test_operators import double
from tests.graph.test_traps import in_rounds, scattered


class Served(nn.Module):
    """Grouped queries without positions, in one operator.

    Args:
        shared: number of heads of keys and values.
        scale: of the scores; without it, the operator takes it from the width of a head.
    """

    def __init__(self, shared: int = 2, heads: int = 6, scale: float | None = 0.5) -> None:
        super().__init__()
        self.heads, self.shared, self.width, self.scale = heads, shared, 4, scale
        self.q, self.out = nn.Linear(WIDTH, heads * 4), nn.Linear(heads * 4, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, shared * 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            side(x).unflatten(-1, (heads, self.width)).transpose(1, 2)
            for side, heads in ((self.q, self.heads), (self.k, self.shared), (self.v, self.shared))
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Smoothed(nn.Module):
    """Heads whose results are mixed between positions, by a matrix whose size is an attribute."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width, self.positions = heads, 4, STEPS
        self.q, self.k, self.v = (nn.Linear(WIDTH, heads * 4) for _ in range(3))
        self.out = nn.Linear(heads * 4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            side(x).view(*x.shape[:2], self.heads, self.width).transpose(1, 2)
            for side in (self.q, self.k, self.v)
        )
        y = (q @ k.mT).softmax(-1) @ v
        ones = x.new_ones(self.positions * self.positions)
        y = ones.view(self.positions, self.positions).cumsum(-1) @ y
        return self.out(y.transpose(1, 2).flatten(2))


class Sampling(nn.Module):
    """Heads that read at computed places of several levels, and weigh what they read."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width, self.levels, self.points = heads, 4, 2, 3
        self.value, self.out = nn.Linear(WIDTH, heads * 4), nn.Linear(heads * 4, WIDTH)
        self.places, self.weights = nn.Linear(WIDTH, heads * 12), nn.Linear(WIDTH, heads * 6)

    def forward(self, x: Tensor) -> Tensor:
        count, steps, _ = x.shape
        value = self.value(x).view(count, steps, self.heads, self.width)
        image = value.flatten(2).transpose(1, 2).reshape(count * self.heads, self.width, steps, 1)
        places = self.places(x).view(count, steps, self.heads, self.levels, self.points, 2).tanh()
        weights = self.weights(x).view(count, steps, self.heads, self.levels * self.points).softmax(-1)
        weights = weights.view(count, steps, self.heads, self.levels, self.points).transpose(1, 2)
        read = [
            F.grid_sample(image, places[:, :, :, level].transpose(1, 2).flatten(0, 1), align_corners=False)
            for level in range(self.levels)
        ]
        weights = weights.reshape(count * self.heads, 1, steps, self.levels * self.points)
        y = (torch.stack(read, dim=-2).flatten(-2) * weights).sum(-1)
        return self.out(y.view(count, self.heads * self.width, steps).transpose(1, 2))


class Separate(nn.Module):
    """Queries with an axis for the heads that share keys and values, multiplied in five dimensions."""

    def __init__(self, shared: int = 2, each: int = 3) -> None:
        super().__init__()
        self.shared, self.each, self.width = shared, each, 4
        self.q, self.out = nn.Linear(WIDTH, shared * each * 4), nn.Linear(shared * each * 4, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, shared * 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:2], self.shared, self.each, self.width)
        k, v = (side(x).view(*x.shape[:2], self.shared, self.width) for side in (self.k, self.v))
        scores = torch.einsum("bsgrd,btgd->bgrst", q, k)
        return self.out(torch.einsum("bgrst,btgd->bsgrd", scores.softmax(-1), v).flatten(2))


class Fused(nn.Module):
    """Each head of keys and values in one layer with the queries that it serves; picked by lists of places.

    Args:
        shared: number of heads of keys and values; 0 for one that all queries share, laid out behind them.
    """

    def __init__(self, shared: int) -> None:
        super().__init__()
        self.shared, self.heads, self.width = max(1, shared), 4, 4
        self.alone = not shared
        self.qkv = nn.Linear(WIDTH, (self.heads + 2 * self.shared) * 4)
        self.out = nn.Linear(self.heads * 4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.alone:
            qkv = self.qkv(x).view(*x.shape[:2], self.heads + 2, self.width)
            q, k, v = qkv[..., :-2, :], qkv[..., [-2], :], qkv[..., [-1], :]
        else:
            qkv = self.qkv(x).view(*x.shape[:2], -1, self.heads // self.shared + 2, self.width)
            q, k, v = qkv[:, :, :, :-2], qkv[:, :, :, [-2]], qkv[:, :, :, [-1]]
            q, k, v = (
                y.flatten(2, 3) for y in (q, torch.broadcast_to(k, q.shape), torch.broadcast_to(v, q.shape))
            )
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.heads * self.width))


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, dict[str, int]]]] = {
    "repeated by expand": (
        lambda: Grouped(scaled=False),
        {"heads": {"parts.0.q": 2}, "query_heads": {"parts.0.q": 2}, "head_dim": {"parts.0.q": 2}},
    ),
    "repeated in place": (
        lambda: Grouped(interleaved=True, scaled=False),
        {"heads": {"parts.0.q": 2}, "query_heads": {"parts.0.q": 2}, "head_dim": {"parts.0.q": 2}},
    ),
    "in one operator": (
        Served,
        {
            "heads": {"parts.0.q": 2},
            "query_heads": {"parts.0.q": 3},
            "head_dim": {"parts.0.q": 4},
        },
    ),
    "in one operator, scaled by the width": (
        lambda: Served(scale=None),
        {"heads": {"parts.0.q": 2}, "query_heads": {"parts.0.q": 3}},
    ),
    "one key/value head": (
        lambda: Served(shared=1),
        {"query_heads": {"parts.0.q": 6}, "head_dim": {"parts.0.q": 4}},
    ),
    "five dimensions": (
        Separate,
        {
            "heads": {"parts.0.q": 2},
            "query_heads": {"parts.0.q": 3},
            "head_dim": {"parts.0.q": 4},
        },
    ),
    "beside a matrix of positions": (
        Smoothed,
        {"heads": {"parts.0.q": 4}, "head_dim": {"parts.0.q": 4}},
    ),
    "at computed places": (Sampling, {"heads": {"parts.0.value": 4}}),
    "one layer cut apart": (
        lambda: Sliced(CONFIG),
        {"heads": {"parts.0.qkv": 2}, "query_heads": {"parts.0.qkv": 2}},
    ),
    "fused with its queries": (
        lambda: Fused(2),
        {"heads": {"parts.0.qkv": 2}, "query_heads": {"parts.0.qkv": 2}},
    ),
    "all in one, one key/value head": (lambda: Fused(0), {"query_heads": {"parts.0.qkv": 4}}),
}
"""Attentions, with the groups of each unit that they have."""


def in_rounds_of_places(
    model: nn.Module, words: Tensor, groups: dict[str, int], attention: str | None
) -> None:
    """As ``in_rounds``, for channels that are contracted with each other: what writes them is set to zero."""
    graph = sec.trace(model, words, attention=attention)
    assert {group.name: group.channels for group in graph.prunable} == groups
    for seed in range(2):
        plan = scattered(graph, seed)
        silent = copy.deepcopy(model)
        with torch.no_grad():
            for group in graph.prunable:
                gone = sorted(
                    set(range(group.channels)) - set(plan.keep.get(group.name, range(group.channels)))
                )
                for member in (*group.roles(Role.PRODUCER), *group.roles(Role.CARRIER)):
                    index = torch.as_tensor(member.slots[gone].ravel())
                    named_tensors(silent)[member.tensor].index_fill_(member.dim, index, 0.0)
        small = sec.apply_plan(model, plan)
        assert largest_difference(evaluate(silent, words), evaluate(small, words)) < 1e-9
        assert sec.verify(model, small, plan, words, tolerance=1e-9).ok
        graph, model = graph.after(plan), small


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MODELS)
def test_each_unit_is_cut_right_and_the_first_is_the_default(name: str) -> None:
    make, units = MODELS[name]
    words = torch.randint(0, WORDS, (2, STEPS))
    for unit, groups in units.items():
        check = in_rounds if unit != "head_dim" else in_rounds_of_places
        check(double(Model(make())), words, {"wte": WIDTH} | groups, attention=unit)
    graph = sec.trace(Model(make()).eval(), words)
    first, *others = units
    assert [(item.module, item.unit, item.others) for item in graph.attentions] == [
        ("parts.0", first, tuple(others))
    ]


def test_layers_of_a_shared_configuration_lose_the_same_query_heads() -> None:
    config = SimpleNamespace(heads=HEADS, key_heads=2)
    words = torch.randint(0, WORDS, (2, STEPS))
    model = double(Model(Sliced(config), Sliced(config), tied=False))
    in_rounds(model, words, {"wte": WIDTH, "parts.0.qkv": 2}, attention="query_heads")


def test_each_layer_may_have_its_unit() -> None:
    model, words = Model(Served(), Served(), Served()).eval(), torch.randint(0, WORDS, (2, STEPS))
    units = {"parts.*": "query_heads", "parts.1": "head_dim"}
    graph = sec.trace(model, words, attention=units)
    assert [item.unit for item in graph.attentions] == ["query_heads", "head_dim", "query_heads"]
    assert [graph[f"parts.{layer}.q"].channels for layer in range(3)] == [3, 4, 3]
    text = str(graph)
    assert "attention:\n" in text
    assert "parts.0, parts.2: query_heads; for others trace(attention='heads' or 'head_dim')" in text


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("rows", "there is no unit 'rows'; write one of heads, query_heads, head_dim"),
        ({"layers.0": "heads"}, "'layers.0' names no attention; there are parts.0"),
        ("heads", "'parts.0' has no unit 'heads'; it has query_heads, head_dim"),
        (
            "head_dim",
            "'head_dim' of 'parts.0' cannot be removed: the scale of attention depends on the width",
        ),
    ],
)
def test_a_unit_that_is_not_there_is_refused(attention: str | dict[str, str], message: str) -> None:
    model, words = Model(Served(shared=1, scale=None)).eval(), torch.randint(0, WORDS, (2, STEPS))
    with pytest.raises(UsageError) as caught:
        sec.trace(model, words, attention=attention)
    assert f"attention: {message}" in str(caught.value)


def test_a_network_without_attention_has_no_units() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(2, 4)
    assert sec.trace(net, x).attentions == ()
    with pytest.raises(UsageError, match="attention: this network has no attention with heads"):
        sec.trace(net, x, attention="heads")


def test_a_bias_for_a_fixed_number_of_heads_freezes_them() -> None:
    class Sloped(Served):
        def forward(self, x: Tensor) -> Tensor:
            slopes = 2.0 ** -torch.arange(1, self.heads + 1, dtype=x.dtype)
            steps = torch.arange(x.shape[1], dtype=x.dtype)
            bias = slopes[:, None, None] * (steps - steps[:, None])
            q, k, v = (
                side(x).view(*x.shape[:2], self.heads, self.width).transpose(1, 2)
                for side in (self.q, self.k, self.v)
            )
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
            return self.out(y.transpose(1, 2).flatten(2))

    graph = sec.trace(Model(Sloped(shared=6)).eval(), torch.randint(0, WORDS, (2, STEPS)))
    assert "has a part for each head" in str(graph["parts.0.q"].reason)


def test_rotary_places_are_left_for_those_who_ask() -> None:
    graph = sec.trace(Rotary(2).eval(), torch.randint(0, WORDS, (2, STEPS)))
    assert {(item.unit, item.others) for item in graph.attentions} == {("heads", ("head_dim",))}


class ScaledByConfig(nn.Module):
    """Attention whose scale is made of the width of the network and the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(width=WIDTH, heads=HEADS)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            side(x).unflatten(-1, (self.config.heads, -1)).transpose(1, 2)
            for side in (self.q, self.k, self.v)
        )
        scores = q @ k.mT * (self.config.width // self.config.heads) ** -0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_heads_that_a_factor_counts_stay_and_places_in_them_go() -> None:
    model, x = double(ScaledByConfig()), torch.randn(2, STEPS, WIDTH, dtype=torch.float64)
    graph = sec.trace(model, x)
    assert [item.unit for item in graph.attentions] == ["head_dim"]
    assert {group.name: group.channels for group in graph.prunable} == {"q": 4, "v": 4}
    plan = scattered(graph, 0)
    small, silent = sec.apply_plan(model, plan), copy.deepcopy(model)
    for name, kept in plan.keep.items():
        gone = sorted(set(range(4)) - set(kept))
        for member in graph[name].members:
            index = torch.as_tensor(member.slots[gone].ravel())
            named_tensors(silent)[member.tensor].data.index_fill_(member.dim, index, 0.0)
    assert small.q.out_features == small.v.out_features == WIDTH // 2
    assert small.config.heads == HEADS
    assert largest_difference(evaluate(silent, x), evaluate(small, x)) < 1e-9
    with pytest.raises(UsageError, match="a factor in the code changes with the width"):
        sec.trace(model, x, attention="heads")


class WithWeights(nn.Module):
    """Attention that returns its weights: its dropout runs inside of a function of PyTorch."""

    def __init__(self, needs_weights: bool) -> None:
        super().__init__()
        self.needs_weights = needs_weights
        self.embed = nn.Linear(5, 16)
        self.attention = nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        out: Tensor = self.head(x + self.attention(x, x, x, need_weights=self.needs_weights)[0])
        return out


@pytest.mark.parametrize("needs_weights", [True, False])
def test_a_dropout_inside_of_attention_is_the_same_in_both_networks(needs_weights: bool) -> None:
    torch.manual_seed(0)
    graph = sec.trace(WithWeights(needs_weights), torch.randn(2, 6, 5))
    assert {group.name: group.channels for group in graph.prunable} == {"embed": 4}
