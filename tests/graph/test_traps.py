"""Traps of wiring, held against the original with zeroed columns or against a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur.graph.capture.program import ExampleInputs
from secateur.graph.checking.compare import largest_difference
from tests.graph.outputs import evaluate
from tests.graph.test_silent_errors import zeroed
from tests.graph.trap_networks import TRAPS, Between, TiedDecoder, TiedLayers, TwoInputs


def scattered(graph: sec.ChannelGraph, seed: int) -> sec.PruningPlan:
    """A plan that keeps half of every group."""
    generator = np.random.default_rng(seed)
    kept = {
        group.name: generator.permutation(group.channels)[: (group.channels + 1) // 2].tolist()
        for group in graph.prunable
    }
    return sec.PruningPlan(graph, kept)


def in_rounds(
    model: nn.Module, inputs: ExampleInputs, groups: dict[str, int], attention: str | None = None
) -> nn.Module:
    """Cuts twice, and compares after each cut; gives back the smallest network."""
    graph = sec.trace(model, inputs, attention=attention)
    assert {group.name: group.channels for group in graph.prunable} == groups
    assert all(group.reason for group in graph.frozen)
    for seed in range(2):
        plan = scattered(graph, seed)
        small = sec.apply_plan(model, plan)
        silent = zeroed(model, graph, {name: list(kept) for name, kept in plan.keep.items()})
        assert largest_difference(evaluate(silent, inputs), evaluate(small, inputs)) < 1e-9
        check = sec.verify(model, small, plan, inputs, tolerance=1e-9)
        # Of weights drawn at random, nothing but closed rectifiers may be left.
        assert check.ok or (not check.outputs and check.max_error == 0), check
        assert plan.cost_after == sec.cost(small, inputs)
        graph, model = graph.after(plan), small
    return model


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap(name: str) -> None:
    make, shape, groups = TRAPS[name]
    model = make().double().eval()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    in_rounds(model, torch.randn(shape, dtype=torch.float64), groups)


def test_a_batch_of_one_is_proved_for_any_batch() -> None:
    model = Between(nn.BatchNorm2d(8), 8).eval()
    x = torch.randn(1, 3, 4, 4)
    plan = scattered(sec.trace(model, x), 0)
    assert sec.verify(model, sec.apply_plan(model, plan), plan, torch.randn(3, 3, 4, 4)).ok


def test_picking_channels_says_why_they_stay() -> None:
    graph = sec.trace(TRAPS["picked by a list"][0](), torch.randn(2, 3, 4, 4))
    assert graph["conv"].reason == "picked by an index tensor (index)"


def test_a_weight_used_in_both_directions_loses_the_same_channels() -> None:
    model, x = TiedDecoder().double().eval(), torch.randn(5, 3, dtype=torch.float64)
    graph = sec.trace(model, x)
    assert {group.name: group.channels for group in graph.prunable} == {"encoder": 7}
    kept = [0, 2, 5]
    small = sec.apply_plan(model, sec.PruningPlan(graph, {"encoder": kept}))
    weight, bias = model.encoder.weight[kept], model.encoder.bias[kept]
    wanted = torch.tanh(x @ weight.T + bias) @ weight + model.bias
    torch.testing.assert_close(small(x), wanted, rtol=1e-12, atol=1e-12)


def test_tied_weights_stay_tied() -> None:
    model = TiedLayers().eval()
    x = torch.randn(5, 3)
    plan = sec.PruningPlan(sec.trace(model, x), {"stem": (1, 4)})
    small = sec.apply_plan(model, plan)
    assert small.one.weight is small.two.weight
    sec.apply_plan(model, plan, inplace=True)
    assert model.one.weight is model.two.weight
    torch.testing.assert_close(model(x), small(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_frozen_parameters_are_cut_and_stay_frozen(inplace: bool) -> None:
    model = Between(nn.BatchNorm2d(8), 8).eval()
    model.conv.requires_grad_(False)
    x = torch.randn(2, 3, 4, 4)
    graph = sec.trace(model, x)
    small = sec.apply_plan(model, sec.PruningPlan(graph, {"conv": (0, 3, 4)}), inplace=inplace)
    assert small.conv.weight.shape == (3, 3, 3, 3)
    wanted = {"conv.weight": False, "conv.bias": False}
    assert all(item.requires_grad is wanted.get(name, True) for name, item in small.named_parameters())


def test_inputs_by_name_and_outputs_in_a_dictionary() -> None:
    model = TwoInputs().double().eval()
    picture, numbers = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((3, 4, 4), (5,)))
    inputs = {"picture": picture, "numbers": numbers}
    small = in_rounds(model, inputs, {"line": 6, "mix": 8})
    outputs = small(**inputs)
    assert list(outputs) == ["maps", "mean"]
    assert outputs["maps"][1][0].shape == (2, 3, 4, 4)
    assert small.line.out_features == small.conv.out_channels < 6


def test_several_inputs_by_place() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            together = self.one(x) * self.two(y)
            return self.head(torch.relu(together)), self.head(together)

    model = Sum().double().eval()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    small = in_rounds(model, (x, y), {"one": 6})
    assert small.one.out_features == small.two.out_features == small.head.in_features < 6


def test_attention_with_other_keys_loses_whole_heads() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.memory = nn.Linear(3, 8), nn.Linear(5, 6)
            self.attention = nn.MultiheadAttention(8, 4, kdim=6, vdim=6, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            memory = torch.tanh(self.memory(y))
            return self.head(self.attention(self.query(x), memory, memory, need_weights=False)[0])

    model = Cross().double().eval()
    x, y = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 7, 5, dtype=torch.float64)
    small = in_rounds(model, (x, y), {"query": 4, "memory": 6, "attention.out_proj": 8})
    attention = small.attention
    assert attention.num_heads * 2 == attention.embed_dim == small.query.out_features
    assert attention.kdim == attention.vdim == small.memory.out_features


def test_a_soft_max_over_channels_sees_the_kept_ones() -> None:
    model = Between(nn.Softmax(1), 8).double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    kept = [1, 2, 6]
    small = sec.apply_plan(model, sec.PruningPlan(sec.trace(model, x), {"conv": kept}))
    with torch.no_grad():
        y = torch.tanh(F.conv2d(x, model.conv.weight[kept], model.conv.bias[kept], padding=1)).softmax(1)
        wanted = F.conv2d(y, model.head.weight[:, kept], model.head.bias)
        torch.testing.assert_close(small(x), wanted, rtol=1e-12, atol=1e-12)
