"""Whole experts of a mixture are removed where the code follows their places.

The answer that does not come from the engine is the original network with the logits of the removed experts
at minus infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur.errors import UsageError

EXPERTS, WIDTH, HIDDEN = 6, 8, 5


class Mixture(nn.Module):
    """Experts with stacked weights; ``way`` computes their mixture from scores of shape (rows, experts)."""

    def __init__(self, way: Callable[[Mixture, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.count = way, EXPERTS
        self.a, self.b = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))
        self.bias = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).tanh()
        return self.b(x + self.way(self, x, self.router(x)))


def chosen(s: Mixture, x: Tensor, experts: Tensor) -> Tensor:
    """Compute the experts of shape (rows, k) for each row."""
    y = torch.einsum("rw,rkwh->rkh", x, s.up[experts]).relu()
    return torch.einsum("rkh,rkhw->rkw", y, s.down[experts]) + F.embedding(experts, s.bias)


def everywhere(s: Mixture, x: Tensor) -> Tensor:
    """Compute all experts for each row: (rows, experts, width)."""
    return torch.einsum("reh,ehw->rew", torch.einsum("rw,ewh->reh", x, s.up).relu(), s.down) + s.bias


def by_index(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    weights, experts = scores.softmax(-1).topk(2)
    return (chosen(s, x, experts) * weights[..., None]).sum(1)


def by_index_select(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    weights, experts = scores.topk(3)
    every = torch.index_select(s.bias, 0, experts.flatten().sort().values)
    return (chosen(s, x, experts) * weights.softmax(-1)[..., None]).sum(1) + every.mean(0)


def by_gather(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    experts = (-scores).topk(2, largest=False).indices
    weights = scores.sigmoid().gather(1, experts)
    picked = everywhere(s, x).gather(1, experts[..., None].expand(-1, -1, WIDTH))
    return (picked * weights[..., None]).sum(1)


def by_scatter(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    weights, experts = scores.softmax(-1).topk(2)
    full = torch.zeros_like(scores).scatter(1, experts, weights)
    return torch.einsum("re,rew->rw", full, everywhere(s, x))


def by_one_hot(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    hot = F.one_hot(scores.topk(2).indices, s.count).sum(1).to(x)
    return torch.einsum("re,rew->rw", hot * scores.softmax(-1), everywhere(s, x))


def by_best(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    first, one = scores.max(-1)
    two = scores.argmax(-1, keepdim=True)
    same = (two[:, 0] == one).to(x)
    return chosen(s, x, torch.cat([one[:, None], two], 1)).sum(1) * (same * first.sigmoid())[:, None]


def by_counts(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    experts = scores.softmax(-1).max(-1).indices
    order = experts.argsort(stable=True)
    count = torch.histc(experts.to(x), s.count, 0, s.count - 1)
    before = count.cumsum(0) - count
    y = chosen(s, x[order], experts[order, None])[:, 0]
    return torch.zeros_like(x).index_copy(0, order, y) + (count * before / (1 + count)).sum()


WAYS = {
    "index": (by_index, 2),
    "index_select": (by_index_select, 3),
    "gather": (by_gather, 2),
    "scatter": (by_scatter, 2),
    "one_hot": (by_one_hot, 2),
    "best": (by_best, 1),
    "counts": (by_counts, 1),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def without(model: Mixture, experts: list[int], x: Tensor) -> Tensor:
    """Compute the original with the logits of some experts at minus infinity."""
    with torch.no_grad():
        kept = model.router.bias.clone()
        model.router.bias[experts] = -torch.inf
        found = model(x)
        model.router.bias.copy_(kept)
    return found


@pytest.mark.parametrize("name", WAYS)
def test_experts_are_removed(name: str) -> None:
    way, least = WAYS[name]
    model, x = Mixture(way).double().eval(), torch.randn(40, 4, dtype=torch.float64)
    graph = sec.trace(model, x)
    group = graph["router"]
    assert (group.channels, group.reason, group.min_channels) == (EXPERTS, None, least)
    assert {(part.tensor, part.dim) for part in group.members} == {
        (tensor, 0) for tensor in ("router.weight", "router.bias", "up", "down", "bias")
    }
    plan = sec.plan_from(graph, {"router": [0, 2, 5]})
    small = sec.apply_plan(model, plan)
    torch.testing.assert_close(small(x), without(model, [0, 2, 5], x))
    assert small.up.shape == (3, WIDTH, HIDDEN)
    assert small.count == (3 if name in ("one_hot", "counts") else EXPERTS)
    assert sec.verify(model, small, plan, x).ok


def test_as_many_experts_stay_as_are_picked() -> None:
    model, x = Mixture(by_index_select).eval(), torch.randn(7, 4)
    graph = sec.trace(model, x)
    with pytest.raises(UsageError, match="needs at least 3 channels"):
        sec.PruningPlan(graph, {"router": [0, 1]})
    plan = sec.make_plan(
        graph, sec.score(model, graph, "magnitude"), sec.Budget(channels=0.25), allocation="uniform"
    )
    assert len(plan.keep["router"]) == 3


def test_curves_end_at_the_number_of_experts_that_are_picked() -> None:
    model, x = Mixture(by_index_select).eval(), torch.randn(40, 4)
    graph = sec.trace(model, x)
    curves = sec.width_curves(model, graph, sec.score(model, graph, "magnitude"), [x])
    assert min(curves["router"].widths) == 3
    assert all(map(math.isfinite, curves["router"].damages))


def all_picked(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    weights, experts = scores.topk(EXPERTS)
    return (chosen(s, x, experts) * weights[..., None]).sum(1)


def numbered(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    return by_index(s, x, scores) * scores.argmax(-1, keepdim=True)


def sorted_by_value(s: Mixture, x: Tensor, scores: Tensor) -> Tensor:
    return by_index(s, x, scores) * scores.sort(-1).values[:, :1]


@pytest.mark.parametrize("way", [all_picked, numbered, sorted_by_value])
def test_experts_stay_where_their_places_are_numbers(
    way: Callable[[Mixture, Tensor, Tensor], Tensor],
) -> None:
    graph = sec.trace(Mixture(way).eval(), torch.randn(7, 4))
    assert "ranked by value" in str(graph["router"].reason)
    assert graph["a"].prunable


class Answers(Mixture):
    """A mixture that returns which experts it chose."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.router(self.a(x)).topk(2).indices


def test_experts_stay_where_their_places_are_an_output() -> None:
    graph = sec.trace(Answers(by_index).eval(), torch.randn(7, 4))
    assert "is an output of the network" in str(graph["router"].reason)
