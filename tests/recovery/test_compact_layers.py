"""Layers that compute only what a cut has left come to the same as the masked original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sec
from secateur.graph.checking.masked import run_masked
from secateur.graph.cutting.tensors import named_tensors
from secateur.plan import plan_from
from secateur.recovery.captured_forward import capture_forward
from secateur.recovery.partial_forward import PartialForward, with_channels_innermost


class Images(nn.Module):
    """Convolutions with and without a bias, with groups, as text padding; normalisations; a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.second = nn.Conv2d(8, 12, 3, stride=2, bias=False)
        self.group = nn.GroupNorm(1, 12)
        self.third = nn.Conv2d(12, 12, 1)
        self.head = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(self.norm(self.first(x)).relu())
        y = self.group(self.second(y)).exp()
        return self.head((y + self.third(y)).mean((2, 3)))


X = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Images().eval()


NET = network()
GRAPH = sec.trace(NET, X[:2])
NAMES = [group.name for group in GRAPH.prunable]


def cuts(graph: sec.ChannelGraph) -> st.SearchStrategy[dict[str, list[int]]]:
    """Any channels of any groups, but not all of a group."""
    return st.fixed_dictionaries(
        {
            group.name: st.lists(st.integers(0, group.channels - 1), unique=True, max_size=group.channels - 1)
            for group in graph.prunable
        }
    )


def played(
    net: nn.Module, graph: sec.ChannelGraph, removed: Any, x: Tensor, innermost: bool = False
) -> Tensor:
    tensors: Mapping[str, Tensor] = {name: tensor.detach() for name, tensor in named_tensors(net).items()}
    forward = capture_forward(net, graph, [x])
    if innermost:
        forward, tensors = with_channels_innermost(forward, tensors)
    return PartialForward(forward, removed, tensors).outputs()[0]


@settings(max_examples=30)
@given(cuts(GRAPH), st.booleans())
def test_it_is_the_masked_original(cut: dict[str, list[int]], innermost: bool) -> None:
    removed = GRAPH.after(plan_from(GRAPH, cut)).removed
    wanted = run_masked(GRAPH.wiring.evaluation, removed, named_tensors(NET), X[:2])[0]
    torch.testing.assert_close(played(NET, GRAPH, removed, X, innermost)[:2], wanted, rtol=1e-4, atol=1e-5)


def test_a_network_that_was_cut_before_is_cut_again() -> None:
    plan = plan_from(GRAPH, {name: [0, 3] for name in NAMES})
    small, graph = sec.apply_plan(NET, plan), GRAPH.after(plan)
    again = plan_from(graph, {name: [1, 2, 4] for name in NAMES})
    found = played(small, graph, graph.after(again).removed, X)
    torch.testing.assert_close(found, sec.apply_plan(small, again)(X), rtol=1e-4, atol=1e-5)


def test_a_layer_is_given_only_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    original = torch.fx.Interpreter.call_function

    def watched(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
        if str(target).startswith("aten.conv2d") and len(args) < 7:
            seen.append(tuple(args[1].shape))
        return original(self, target, args, kwargs)

    monkeypatch.setattr(torch.fx.Interpreter, "call_function", watched)
    removed = GRAPH.after(plan_from(GRAPH, {name: range(5) for name in NAMES})).removed
    assert np.count_nonzero(removed)
    played(NET, GRAPH, removed, X)
    assert seen == [(3, 3, 3, 3), (7, 3, 3, 3), (7, 7, 1, 1)]


def test_one_example_without_a_dimension_for_examples_runs_too() -> None:
    """Channels stand in the first dimension there."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(2, 6, 3), nn.Conv1d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            rows = x.flatten(0, 1)
            return self.second(self.first(rows).relu()).sum(-1)[None].expand(len(x), 3)

    torch.manual_seed(0)
    net, x = Single().eval(), torch.randn(1, 2, 8)
    graph = sec.trace(net, x)
    plan = plan_from(graph, {"first": [0, 1, 5]})
    found = played(net, graph, graph.after(plan).removed, x)
    torch.testing.assert_close(found, sec.apply_plan(net, plan)(x), rtol=1e-4, atol=1e-5)
