"""Code that draws random numbers with parameters that follow a width, where no output shows them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec

Noise = Callable[[Tensor], Tensor]


class Noisy(nn.Module):
    """Noise in training, then a normalisation that divides by every scale."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.noise = [noise]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() + 0.1
        if self.training:
            x = self.noise[0](x)
        return self.last(F.normalize(x, dim=1))


def share(x: Tensor) -> float:
    return 0.5 + 0.3 * x.shape[1] / 16


FOLLOWING: dict[str, Noise] = {
    "factors": lambda x: x * torch.bernoulli(torch.full((len(x), 1), share(x))),
    "truth values": lambda x: x * torch.bernoulli(torch.full((len(x), 1), share(x))).bool(),
    "compared draws": lambda x: x * (torch.empty(len(x), 1).bernoulli_(share(x)) == 1),
    "threshold": lambda x: x * (torch.rand(len(x), 1) < share(x)),
    "threshold in a tensor": lambda x: x * (torch.rand(len(x), 1) < torch.full((len(x), 1), share(x))),
    "elementwise draws": lambda x: x * torch.empty_like(x).bernoulli_(share(x)),
    "multiplicative noise": lambda x: x * (1 + share(x) * torch.randn_like(x)),
    "normal noise": lambda x: x * torch.empty_like(x).normal_(1, share(x)),
    "added noise": lambda x: torch.add(x, torch.randn_like(x), alpha=share(x)),
    "floor": lambda x: x * (torch.rand(len(x), 1) + share(x)).floor(),
    "where": lambda x: torch.where(torch.rand(len(x), 1) < share(x) / 10, 0, x),
    "dropout of ones": lambda x: x * F.dropout(torch.ones_like(x), share(x)),
    "dropout of signs": lambda x: x * F.dropout(x.sign(), share(x)),
}

FIXED: dict[str, Noise] = {
    "factors": lambda x: x * torch.bernoulli(torch.full((len(x), 1), 0.7)),
    "truth values": lambda x: x * torch.bernoulli(torch.full((len(x), 1), 0.7)).bool(),
    "multiplicative noise": lambda x: x * (1 + 0.3 * torch.randn_like(x)),
    "added noise": lambda x: x + 0.1 * torch.randn(x.shape),
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout of ones": lambda x: x * F.dropout(torch.ones_like(x), 0.3),
    "repeated draws": lambda x: x * torch.rand(2 * len(x)).view(len(x), 2)[:, :1].repeat(1, x.shape[1]),
    "random rows": lambda x: 0.9 * x + 0.1 * x[torch.randperm(len(x))],
}


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FOLLOWING)
def test_numbers_of_draws_that_follow_a_width_freeze_it(name: str, rows: Tensor) -> None:
    assert sec.trace(Noisy(FOLLOWING[name]), rows)["first"].reason is not None


@pytest.mark.parametrize("name", FIXED)
def test_draws_with_fixed_numbers_are_cut_and_verified(name: str, rows: Tensor) -> None:
    model = Noisy(FIXED[name])
    graph = sec.trace(model, rows)
    assert graph["first"].reason is None
    plan = sec.plan_from(graph, {"first": [1, 2, 7]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, rows).ok


@pytest.mark.parametrize("name", ["truth values", "multiplicative noise", "dropout of signs", "added noise"])
def test_draws_that_change_at_a_width_that_no_trial_used_are_found_at_the_cut(
    name: str, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "share", lambda x: 0.3 if x.shape[1] == 13 else 0.5)
    model = Noisy(FOLLOWING[name])
    graph = sec.trace(model, rows)
    assert graph["first"].reason is None
    plan = sec.plan_from(graph, {"first": [1, 2, 7]})
    check = sec.verify(model, sec.apply_plan(model, plan), plan, rows)
    assert not check.ok
    assert "in training mode, code changes" in str(check)


class Attention(nn.Module):
    """Attention whose dropout follows the number of its heads, before a normalisation."""

    def __init__(self, p: Callable[[Tensor], float]) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16)
        self.last = nn.Linear(16, 4)
        self.p = [p]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        p = self.p[0](q) if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).flatten(2)
        return self.last(F.normalize(x, dim=-1))


def test_the_dropout_of_an_attention_follows_no_width() -> None:
    x = torch.randn(2, 5, 8)
    assert sec.trace(Attention(lambda q: 0.1), x)["query"].reason is None
    reason = sec.trace(Attention(lambda q: 0.1 * q.shape[1] / 4), x)["query"].reason
    assert reason is not None
    assert "scaled_dot_product_attention" in reason


class Deep(nn.Module):
    """A residual branch that draws itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.branch = nn.Sequential(nn.Linear(8, 12), Jitter(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last((x + self.branch(x)).relu())


class Jitter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.2 * torch.randn_like(x)) if self.training else x


def test_draws_of_a_branch_go_with_it(rows: Tensor) -> None:
    model = Deep()
    graph = sec.trace(model, rows)
    (branch,) = graph.branches
    assert branch.reason is None
    plan = sec.PruningPlan(graph, {}, (branch.name,))
    assert sec.verify(model, sec.apply_plan(model, plan), plan, rows).ok


class InEvaluation(Noisy):
    """The same in evaluation mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() + 0.1
        return self.last(F.normalize(x if self.training else self.noise[0](x), dim=1))


@pytest.mark.parametrize("name", ["truth values", "threshold", "multiplicative noise", "dropout of ones"])
def test_draws_in_evaluation_mode_count_as_well(name: str, rows: Tensor) -> None:
    assert sec.trace(InEvaluation(FOLLOWING[name]), rows)["first"].reason is not None
    model = InEvaluation(FIXED[name if name in FIXED else "truth values"])
    graph = sec.trace(model, rows)
    assert graph["first"].reason is None
    plan = sec.plan_from(graph, {"first": [1, 2, 7]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, rows).ok


CHOOSING: dict[str, Noise] = {
    "k-th of the draws": lambda x: x * torch.rand(len(x), 20).kthvalue(x.shape[1], 1, keepdim=True)[0],
    "largest of so many": lambda x: x * torch.rand(len(x), 20)[:, : x.shape[1]].amax(1, keepdim=True),
    "sorted": lambda x: x * torch.rand(len(x), 20).sort(1)[0][:, x.shape[1] - 1].unsqueeze(1),
    "mean of so many": lambda x: x * F.avg_pool1d(torch.rand(len(x), 1, 40), x.shape[1])[:, 0, :1],
    "any of so many": lambda x: x * (torch.rand(len(x), int(str(x.shape[1]))) < 0.5).any(1, keepdim=True),
}


@pytest.mark.parametrize("name", CHOOSING)
def test_a_width_that_says_among_how_many_draws_is_chosen_is_frozen(name: str, rows: Tensor) -> None:
    assert sec.trace(Noisy(CHOOSING[name]), rows)["first"].reason is not None


class Limited(nn.Module):
    """A limit that the values of the example inputs do not reach."""

    def __init__(self, limit: Noise) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.limit = [limit]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.limit[0](self.first(x)))


LIMITS: dict[str, Noise] = {
    "clamp": lambda x: x.clamp(max=10.0 * x.shape[1]),
    "integer": lambda x: x.clamp(max=10 * x.shape[1]),
    "norm": lambda x: x * torch.clamp(50 * x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True), max=1.0),
    "where": lambda x: torch.where(x > 10.0 * x.shape[1], 0.0, x),
    "masked_fill": lambda x: x.masked_fill(x > 10.0 * x.shape[1], 0.0),
    "hardtanh": lambda x: F.hardtanh(x, -10.0 * x.shape[1], 10.0 * x.shape[1]),
    "tensor": lambda x: torch.maximum(x, torch.full((1,), -10.0 * x.shape[1])),
    "shape as a tensor": lambda x: torch.minimum(x, 10 * x.new_tensor(x.shape)[1]),
    "two rectifiers": lambda x: x.relu() - (x - 10.0 * x.shape[1]).relu(),
    "sign": lambda x: x * torch.sign(10 * x.shape[1] - x),
    "gate": lambda x: x * torch.sigmoid(30 * x.shape[1] - x),
    "renorm": lambda x: x.renorm(2, 0, 10.0 * x.shape[1]),
    "buckets": lambda x: x * torch.bucketize(x, torch.tensor([-20.0 * x.shape[1], 20.0 * x.shape[1]])),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_follows_a_width_freezes_it(name: str, rows: Tensor) -> None:
    reason = sec.trace(Limited(LIMITS[name]), rows)["first"].reason
    assert reason is not None
    assert "with the width" in reason


@pytest.mark.parametrize("limit", [lambda x: x.clamp(0, 6), F.relu6, lambda x: x.masked_fill(x > 3, 0.0)])
def test_limits_that_follow_nothing_freeze_nothing(limit: Noise, rows: Tensor) -> None:
    model = Limited(limit)
    graph = sec.trace(model, rows)
    assert graph["first"].reason is None
    plan = sec.plan_from(graph, {"first": [1, 2, 7]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, rows).ok


CONSTANTS: dict[str, Noise] = {
    "ones": lambda x: x / torch.ones_like(x).sum(1, keepdim=True),
    "new ones": lambda x: x / x.new_ones(x.shape).sum(1, keepdim=True),
    "twos": lambda x: x / torch.full_like(x, 2.0).mean(1, keepdim=True),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_statistic_of_a_constant_of_the_shape_of_a_value_is_named(name: str, rows: Tensor) -> None:
    reason = sec.trace(Limited(CONSTANTS[name]), rows)["first"].reason
    assert str(reason).startswith("a constant is computed with a statistic over these channels")


def test_a_statistic_of_draws_is_named(rows: Tensor) -> None:
    noise: Noise = lambda x: x * torch.rand(len(x), x.shape[1]).amax(1, keepdim=True)  # noqa: E731
    reason = sec.trace(Noisy(noise), rows)["first"].reason
    assert reason == "a random number is computed with a statistic over these channels (amax)"


class DropPath(nn.Module):
    """Stochastic depth as libraries write it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(len(x), 1).bernoulli_(0.8).div_(0.8)


class TwoBranches(nn.Module):
    """Two branches of a block that share one module of stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.one, self.other = (nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in "ab")
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.drop_path(self.one(x))
        return self.last(x + self.drop_path(self.other(x)))


def test_a_branch_goes_and_its_draws_stay(rows: Tensor) -> None:
    model = TwoBranches()
    graph = sec.trace(model, rows)
    assert [branch.reason for branch in graph.branches] == [None, None]
    for branch in graph.branches:
        plan = sec.PruningPlan(graph, {"one.0": (0, 3, 4)}, (branch.name,))
        assert sec.verify(model, sec.apply_plan(model, plan), plan, rows).ok
