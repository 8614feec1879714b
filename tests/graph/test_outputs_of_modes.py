"""Networks that run the same operators in both modes and return something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec

Returned = Callable[[Tensor, Tensor, bool], Any]


class Returning(nn.Module):
    """Two heads, both computed in both modes."""

    def __init__(self, returned: Returned) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 3)
        self.returned = [returned]

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).relu()
        return self.returned[0](self.head(x), self.other(x), self.training)


RETURNED: dict[str, tuple[Returned, bool]] = {
    "one more": (lambda y, z, training: (y, z) if training else y, True),
    "list": (lambda y, z, training: [y] if training else y, False),
    "dict": (lambda y, z, training: {"out": y} if training else y, False),
    "none": (lambda y, z, training: (y, None) if training else y, False),
    "number": (lambda y, z, training: (y, 0.5) if training else y, False),
    "twice": (lambda y, z, training: y if training else (y, y), False),
    "other order": (lambda y, z, training: (z, y) if training else (y, z), True),
    "same": (lambda y, z, training: (y, z), True),
}


@pytest.mark.parametrize("name", RETURNED)
def test_the_outputs_of_each_mode_count(name: str) -> None:
    torch.manual_seed(0)
    returned, uses_other = RETURNED[name]
    model, x = Returning(returned).eval(), torch.randn(4, 6)
    graph = sec.trace(model, x)
    assert graph["body"].reason is None
    assert graph["head"].reason == "is an output of the network"
    assert (graph["other"].reason == "is an output of the network") is uses_other
    plan = sec.plan_from(graph, {"body": [0, 3, 9]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    for training in (False, True):
        assert type(small.train(training)(x)) is type(model.train(training)(x))


class Detecting(nn.Module):
    """A head whose numbers are returned in training and decoded in evaluation."""

    def __init__(self, decode: Callable[[Detecting, Tensor], Any]) -> None:
        super().__init__()
        self.decode = [decode]
        self.body, self.norm, self.branch = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 1)
        self.inner, self.drop = nn.Conv2d(12, 12, 1), nn.Dropout(0.3)
        self.head = nn.Conv2d(12, 8, 1)
        self.tail = nn.BatchNorm2d(4) if decode is normed_tail else nn.Identity()
        self.register_buffer("places", torch.arange(8.0))

    def numbers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.drop(self.norm(self.body(x)).relu())
        inner = self.branch(x)
        return self.head(x + self.inner(inner.sin())), inner

    def forward(self, x: Tensor) -> Any:
        return self.decode[0](self, x)


def expected_place(net: Detecting, x: Tensor) -> Any:
    raw, _ = net.numbers(x)
    return raw if net.training else (raw.softmax(1) * net.places.view(1, 8, 1, 1)).sum(1)


def normed_tail(net: Detecting, x: Tensor) -> Any:
    raw, _ = net.numbers(x)
    return (raw, raw.sum(2)) if net.training else net.tail(raw.reshape(len(x), 4, 2, -1))


def in_place(net: Detecting, x: Tensor) -> Any:
    raw, _ = net.numbers(x)
    return raw if net.training else raw.sigmoid_()


def within_a_branch(net: Detecting, x: Tensor) -> Any:
    raw, inner = net.numbers(x)
    return [raw, inner] if net.training else raw


def hidden_by_a_norm(net: Detecting, x: Tensor) -> Any:
    raw = net.numbers(x)[0] * float(net.body(x).shape[1])
    return {"raw": raw} if net.training else nn.functional.normalize(raw, dim=1)


DECODED: dict[str, tuple[Callable[[Detecting, Tensor], Any], bool, set[str], set[str]]] = {
    "expected place": (expected_place, True, {"head"}, {"branch"}),
    "normed tail": (normed_tail, False, {"head"}, {"branch"}),
    "in place": (in_place, False, {"head"}, {"branch"}),
    "within a branch": (within_a_branch, True, {"head", "branch"}, set()),
    "hidden by a norm": (hidden_by_a_norm, True, {"head", "body"}, {"branch"}),
}
"""For each: how it decodes, whether training is known without a capture, and which groups are frozen, and
which branches may be removed."""


@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize("examples", [1, 3])
def test_numbers_that_evaluation_decodes_are_outputs(name: str, examples: int) -> None:
    torch.manual_seed(0)
    decode, is_part, frozen, free = DECODED[name]
    model, x = Detecting(decode).eval(), torch.randn(examples, 3, 6, 6)
    graph = sec.trace(model, x)
    training = graph.wiring.training.program
    assert (training.is_part, training.training, training.derived) == (is_part, True, False)
    assert {item for item in ("body", "branch", "head") if graph[item].reason} == frozen
    removable = {branch.name for branch in graph.branches if branch.prunable}
    assert removable == free
    plan = sec.plan_from(graph, {group.name: list(range(group.channels // 2)) for group in graph.prunable})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    again = sec.trace(small, x)
    assert {group.name for group in again.prunable} == {group.name for group in graph.prunable}
