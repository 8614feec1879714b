"""Scores of residual branches, compared with gates written into the network by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.ablation import Ablation, ablate
from secateur.budget import Budget, Widths, make_plan
from secateur.criteria import Scores, score, watch
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, trace


class Block(nn.Module):
    """Several modules compute the branch, and it is added in place."""

    def __init__(self, gates: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.gates, self.name = gates, name

    def forward(self, x: Tensor) -> Tensor:
        value = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.name in self.gates:
            value = value * self.gates[self.name].view(-1, 1, 1, 1)
        value += x
        return F.relu(value)


class Whole(nn.Module):
    """One module computes the sum."""

    def __init__(self, gates: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1))
        self.gates, self.name = gates, name

    def forward(self, x: Tensor) -> Tensor:
        value = self.f(x)
        if self.name in self.gates:
            value = value * self.gates[self.name].view(-1, 1, 1, 1)
        return x + value


class Gated(nn.Module):
    """A stack whose branches can be multiplied by gates, one per example."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, Tensor] = {}
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList([Block(self.gates, "a"), Whole(self.gates, "b"), Block(self.gates, "c")])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

    @contextmanager
    def gated(self, examples: int) -> Iterator[dict[str, Tensor]]:
        self.gates.update({name: torch.ones(examples, requires_grad=True) for name in "abc"})
        yield self.gates
        self.gates.clear()


NAMES = ["blocks.0", "blocks.1.f", "blocks.2"]


@pytest.fixture(scope="module")
def case() -> tuple[Gated, ChannelGraph, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    net = Gated().eval()
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4,))) for _ in range(2)]
    for inputs, _ in batches:
        net.train()(inputs)  # other running statistics than those of a fresh network
    graph = trace(net.eval(), batches[0][0])
    assert [branch.name for branch in graph.branches if branch.prunable] == NAMES
    return net, graph, batches


def by_hand(net: Gated, batches: list[tuple[Tensor, Tensor]], power: int) -> list[float]:
    """The mean over examples of a power of the absolute gate gradients."""
    rows = []
    for inputs, targets in batches:
        with net.gated(len(inputs)) as gates:
            F.cross_entropy(net(inputs), targets, reduction="sum").backward()
            rows.append(torch.stack([gates[name].grad.abs() ** power for name in "abc"], 1))
        net.zero_grad()
    return torch.cat(rows).mean(0).tolist()


@pytest.mark.parametrize(("criterion", "power"), [("taylor", 1), ("taylor-squared", 2)])
def test_a_branch_is_one_feature(case, criterion: str, power: int) -> None:
    net, graph, batches = case
    scores = score(net, graph, criterion, batches, F.cross_entropy)
    assert list(scores.branches) == NAMES
    assert list(scores.branches.values()) == pytest.approx(by_hand(net, batches, power), rel=1e-4)


def test_training_gives_the_same_scores_and_gradients(case) -> None:
    net, graph, batches = case
    expected = score(net, graph, "taylor", batches, F.cross_entropy)
    plain = []
    for inputs, targets in batches:
        F.cross_entropy(net(inputs), targets).backward()
    plain = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    with watch(net, graph, "taylor") as collector:
        for inputs, targets in batches:
            F.cross_entropy(net(inputs), targets).backward()
    assert all(torch.equal(one, p.grad) for one, p in zip(plain, net.parameters(), strict=True))
    net.zero_grad()
    assert dict(collector.scores().branches) == pytest.approx(dict(expected.branches), rel=1e-5)


def test_channels_have_the_scores_that_they_have_in_the_network_with_gates(case) -> None:
    net, graph, batches = case
    assert torch.isfinite(score(net, graph, "taylor", batches, F.cross_entropy)["stem"]).all()


def test_block_influence_is_the_change_of_direction(case) -> None:
    net, graph, batches = case
    with torch.no_grad():
        total = torch.zeros(3)
        for inputs, _ in batches:
            x = F.relu(net.stem(inputs))
            for number, block in enumerate(net.blocks):
                value = (
                    block.f(x)
                    if isinstance(block, Whole)
                    else block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
                )
                total[number] += (1 - F.cosine_similarity(x.flatten(1), (x + value).flatten(1))).sum()
                x = block(x)
    scores = score(net, graph, "block-influence", batches)
    assert list(scores.branches) == NAMES
    assert list(scores.branches.values()) == pytest.approx((total / 8).tolist(), rel=1e-4)
    assert set(scores.unscored) == {group.name for group in graph.prunable}


def test_random_scores_depend_on_the_name_alone(case) -> None:
    net, graph, _ = case
    one, again = (score(net, graph, "random").branches for _ in range(2))
    assert one == again
    assert len(set(one.values())) == 3
    assert all(0 <= value < 1 for value in one.values())


def test_criteria_of_channels_leave_branches_out_and_plans_say_so(case) -> None:
    net, graph, batches = case
    for scores in (score(net, graph, "magnitude"), score(net, graph, "activation-std", batches)):
        assert not scores.branches
        with pytest.raises(UsageError, match=f"'{scores.criterion}' does not score residual branches"):
            make_plan(graph, scores, Budget(macs=0.5), widths=Widths(depth="only"))


def test_a_network_without_branches_has_no_influence() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(4, 3)
    with pytest.raises(UsageError, match="this network has none to remove"):
        score(net, trace(net, x), "block-influence", [x])


def test_scores_of_branches_are_kept_in_json_and_printed() -> None:
    scores = Scores("taylor", {"a": torch.ones(2)}, branches={"a": 0.5})
    assert Scores.from_dict(scores.to_dict()) == scores
    assert "residual branch" in str(scores.normalized("l2"))
    with pytest.raises(UsageError, match="score of residual branch 'a' is nan"):
        Scores("taylor", {}, branches={"a": float("nan")})


def test_ablation_masks_each_branch(case) -> None:
    net, graph, batches = case
    found = ablate(net, graph, batches, F.cross_entropy)
    losses = []
    for name in (None, *"abc"):
        total = 0.0
        for inputs, targets in batches:
            with torch.no_grad(), net.gated(len(inputs)) as gates:
                if name is not None:
                    gates[name].data.zero_()
                total += float(F.cross_entropy(net(inputs), targets))
        losses.append(total / len(batches))
    changes = [loss - losses[0] for loss in losses[1:]]
    assert list(found.branches) == NAMES
    assert list(found.branches.values()) == pytest.approx(changes, rel=1e-4, abs=1e-6)
    assert list(found.magnitude().branches.values()) == list(map(abs, found.branches.values()))
    assert Ablation.from_dict(found.to_dict()) == found
    assert ablate(net, graph, batches, F.cross_entropy, resume=found) == found
