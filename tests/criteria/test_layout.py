from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.criteria import score
from secateur.criteria.layout import layout_of, modules_of
from secateur.errors import UsageError
from secateur.graph import trace
from secateur.graph.groups import Group, Member, Reader, Role


def group(name: str, channels: int, reason: str | None = None) -> Group:
    slots = np.arange(channels)[:, None]
    return Group(name, (Member(f"{name}.weight", 0, Role.PRODUCER, slots),), reason)


def reader(
    module: str, places: list[tuple[int, int]], tensor: str | None = None, *, at_input: bool = True
) -> Reader:
    numbers = np.array(places, dtype=np.int64)
    weight = f"{module}.weight" if tensor is None else tensor
    return Reader(module, weight, -1, numbers[:, 0], numbers[:, 1], at_input)


def graph(groups: list[Group], readers: list[Reader]) -> Any:
    return SimpleNamespace(tensors={}, groups=tuple(groups), readers=tuple(readers), branches=())


def test_prunable_channels_lie_side_by_side_and_others_fall_off_the_end() -> None:
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abcd"})
    made = graph(
        [group("a", 2), group("b", 3, reason="no"), group("c", 2)],
        [reader("d", [(2, 1), (-1, -1), (0, 0), (1, 2), (2, 0), (0, 1), (0, 1)])],
    )
    layout = layout_of(made, dict(net.named_modules()))
    assert layout.channels == 4
    assert layout.inputs[0].index.tolist() == [3, 4, 0, 4, 2, 1, 1]
    parts = layout.split(torch.arange(4))
    assert {name: part.tolist() for name, part in parts.items()} == {"a": [0, 1], "c": [2, 3]}
    assert layout.groups_of(layout.inputs) == {"a", "c"}
    assert layout.hidden == {}


def test_readers_of_no_scored_channel_are_not_watched() -> None:
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in "ab"})
    made = graph([group("a", 2, reason="no")], [reader("b", [(0, 0), (0, 1)])])
    assert layout_of(made, dict(net.named_modules())).inputs == ()


def test_a_shared_module_is_watched_once_whatever_its_path() -> None:
    layer = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": layer, "c": layer})
    places = [(0, 0), (0, 1)]
    made = graph([group("a", 2)], [reader("b", places), reader("c", places, tensor="b.weight")])
    layout = layout_of(made, dict(net.named_modules(remove_duplicate=False)))
    assert [scored.module for scored in layout.inputs] == ["b"]
    assert layout.hidden == {}


def test_what_is_read_inside_a_forward_pass_is_left_out_and_named() -> None:
    """Attention contracts with the weight of a child that is never called."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Parameter(torch.ones(2, 2))
            self.out = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(x @ self.into), self.out.weight)

    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "att": Attention()})
    made = graph(
        [group("a", 2), group("b", 2), group("att.out", 2)],
        [
            reader("att", [(0, 0), (0, 1)], tensor="att.into"),
            reader("att", [(1, 0), (1, 1)], tensor="att.out.weight", at_input=False),
            reader("b", [(0, 0), (0, 1)]),
        ],
    )
    layout = layout_of(made, dict(net.named_modules()))
    assert [scored.module for scored in layout.inputs] == ["att", "b"]
    assert layout.hidden == {
        "b": "module 'att' reads its channels inside its forward pass, where they cannot be observed",
        "att.out": "nothing in the network contracts over its channels",
    }


def test_weights_that_are_computed_count_as_their_modules() -> None:
    """Weight normalisation: the layer's own weight is made of two parameters."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    net = nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(3, 2))
    layout = layout_of(trace(net, torch.ones(1, 2)), dict(net.named_modules()))
    assert [scored.module for scored in layout.inputs] == ["1", "2"]
    assert layout.hidden == {}


def test_a_network_of_which_nothing_can_be_watched_is_told() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net.add_module("a", net[0])
    made = graph([group("a", 2)], [])
    with pytest.raises(
        UsageError, match=r"nothing in the network contracts over its channels.*use 'magnitude'"
    ):
        score(net, made, "apoz", [torch.ones(2, 2)])
    with pytest.raises(UsageError, match="no channel group of this network may be pruned"):
        score(net, graph([group("a", 2, reason="no")], []), "magnitude")


def test_a_network_with_a_child_called_module_is_not_taken_for_a_wrapper() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    net = Odd()
    made = graph([group("module", 2)], [reader("module", [(0, 0), (0, 1)])])
    inner, modules = modules_of(net, made)
    assert inner is net
    assert modules["module"] is net.module
