from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateur as sec
from secateur.ablation import Ablation, ablate
from secateur.errors import UsageError
from secateur.recovery.compact_layers import CompactInterpreter
from tests.graph.networks import build

Batch = tuple[Tensor, Tensor]


class Coupled(nn.Module):
    """A residual stream, a depthwise convolution and two readers of one group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = x + self.norm(self.point(self.depthwise(x).relu()))
        return self.head(torch.cat([y.mean((2, 3)), x.amax((2, 3))], 1))


@pytest.fixture
def net() -> Coupled:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Coupled().eval()


@pytest.fixture
def batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(20, 3, 8, 8, generator=draw), torch.randint(4, (20,), generator=draw)
    return list(zip(inputs.split(8), targets.split(8), strict=True))


def loss_of(model: nn.Module, batches: list[Batch]) -> float:
    with torch.no_grad():
        outputs = torch.cat([model(x) for x, _ in batches])
        return float(cross_entropy(outputs, torch.cat([y for _, y in batches])))


def masked(net: Coupled, name: str, channel: int) -> Coupled:
    """The network in which nothing reads a channel, its readers' columns zeroed by hand."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        if name == "depthwise":
            net.point.weight[:, channel] = 0
        else:
            net.depthwise.weight[channel] = 0
            net.depthwise.bias[channel] = 0
            net.point.weight[:, channel] = 0
            net.head.weight[:, [channel, 6 + channel]] = 0
    return net


def test_every_change_is_that_of_plain_masking(net: Coupled, batches: list[Batch]) -> None:
    graph = sec.trace(net, batches[0][0][:2])
    found = ablate(net, graph, batches, cross_entropy)
    whole = loss_of(net, batches)
    assert found.loss == pytest.approx(whole, rel=1e-6)
    assert found.examples == 20
    channels = sum(group.channels for group in graph.prunable)
    assert found.measured == channels + len(found.branches) > 0
    for name, changes in found.items():
        expected = [loss_of(masked(net, name, c), batches) - whole for c in range(len(changes))]
        assert changes.tolist() == pytest.approx(expected, abs=2e-6), name


@pytest.mark.parametrize("name", ["residual", "dense", "selectivekernels", "softmaxoverchannels"])
def test_a_change_is_that_of_the_cut_network(name: str) -> None:
    model, x = build(name), torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    graph = sec.trace(model, x)
    targets = torch.zeros(6, dtype=torch.int64)
    found = ablate(model, graph, [(x, targets)], lambda out, _: out.square().mean())
    with torch.no_grad():
        whole = float(model.eval()(x).square().mean())
        for group in graph.prunable:
            if group.name not in found:
                continue
            small = sec.apply_plan(model, sec.plan_from(graph, {group.name: [0]})).eval()
            change = float(small(x).square().mean()) - whole
            assert float(found[group.name][0]) == pytest.approx(change, abs=1e-5 * max(1.0, whole))


class Mixed(nn.Module):
    """Examples in the second dimension while channels are mixed, and a norm over channels behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(5, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).transpose(0, 1).relu()
        return self.last(self.norm(self.second(x))).transpose(0, 1).mean(1)


def test_examples_may_lie_in_another_dimension_while_channels_are_read() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Mixed().eval()
        x = torch.randn(3, 12, 5)
    graph, targets = sec.trace(net, x[:2]), torch.tensor([0, 1, 2])
    found = ablate(net, graph, [(x, targets)], cross_entropy)
    assert set(found) == {"first", "second"}
    with torch.no_grad():
        whole = float(cross_entropy(net(x), targets))
        for name, changes in found.items():
            small = sec.apply_plan(net, sec.plan_from(graph, {name: [1]})).eval()
            change = float(cross_entropy(small(x), targets)) - whole
            assert float(changes[1]) == pytest.approx(change, abs=1e-5)


def test_what_was_measured_before_is_not_measured_again(net: Coupled, batches: list[Batch]) -> None:
    graph = sec.trace(net, batches[0][0][:2])
    seen: list[tuple[int, int]] = []
    kept: list[Ablation] = []

    def progress(found: Ablation, total: int) -> None:
        seen.append((found.measured, total))
        kept.append(found)

    full = ablate(net, graph, batches, cross_entropy, progress=progress)
    total = full.measured
    assert seen == [(done, total) for done in range(1, total + 1)]
    half = Ablation.from_dict(json.loads(json.dumps(kept[3].to_dict())))
    assert half.measured == 4
    seen.clear()
    again = ablate(net, graph, batches, cross_entropy, resume=half, progress=progress)
    assert [done for done, _ in seen] == list(range(5, total + 1))
    assert again == full


def test_resuming_with_other_examples_or_weights_is_refused(net: Coupled, batches: list[Batch]) -> None:
    graph = sec.trace(net, batches[0][0][:2])
    found = ablate(net, graph, batches, cross_entropy)
    with pytest.raises(UsageError, match="other examples or weights"):
        ablate(net, graph, batches[:1], cross_entropy, resume=found)
    with torch.no_grad():
        net.head.bias[0] += 1
    with pytest.raises(UsageError, match="other examples or weights"):
        ablate(net, graph, batches, cross_entropy, resume=found)
    with pytest.raises(UsageError, match="another network"):
        ablate(net, graph, batches, cross_entropy, resume=Ablation({}, 1.0, 20))


def test_a_number_of_examples_can_be_asked_for(net: Coupled, batches: list[Batch]) -> None:
    graph = sec.trace(net, batches[0][0][:2])
    found = ablate(net, graph, batches, cross_entropy, max_examples=10)
    cut = [batches[0], (batches[1][0][:2], batches[1][1][:2])]
    assert found.examples == 10
    assert found.loss == pytest.approx(loss_of(net, cut), rel=1e-6)


def test_the_changes_can_be_pruned_by(net: Coupled, batches: list[Batch]) -> None:
    graph = sec.trace(net, batches[0][0][:2])
    found = ablate(net, graph, batches, cross_entropy)
    plan = sec.make_plan(graph, found.magnitude(), sec.Budget(channels=0.5), normalize="none")
    changes = torch.cat([found[name].abs() for name in found])
    removed = [float(found[name][c].abs()) for name, gone in plan.removed.items() for c in gone]
    assert sorted(removed) == pytest.approx(changes.sort().values[: len(removed)].tolist(), rel=1e-5)
    assert any(value < 0 for name in found for value in found[name].tolist())


@pytest.mark.parametrize("bad", [[], [torch.zeros(2, 3, 8, 8)], [(torch.zeros(2, 3, 8, 8), None)]])
def test_batches_without_targets_are_refused(net: Coupled, batches: list[Batch], bad: list[object]) -> None:
    graph = sec.trace(net, batches[0][0][:2])
    with pytest.raises(UsageError, match="pairs|no examples|in their first dimension"):
        ablate(net, graph, bad, cross_entropy)


def test_a_channel_that_is_zero_for_all_examples_costs_no_pass() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )
        x = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        net[0].bias[1] = -100.0
    graph, targets, losses, known = sec.trace(net, x[:2]), torch.arange(6) % 3, [], []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        losses.append(cross_entropy(outputs, targets))
        return losses[-1]

    found = ablate(net, graph, [(x, targets)], loss, progress=lambda now, _: known.append(now["0"]))
    assert found["0"][1] == 0
    assert (found["0"][[0, 2, 3, 4]] != 0).all()
    assert len(losses) == found.measured  # that of the whole network, and one for every other channel
    assert known[0].tolist() == pytest.approx([torch.nan, 0, torch.nan, torch.nan, torch.nan], nan_ok=True)
    assert len(known) == found.measured


def test_every_pass_begins_at_the_first_step_that_reads_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are counted: the network twice (the second time up to the last group), then the rest for each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3))
        x = torch.randn(6, 3)
    graph, run = sec.trace(net, x[:2]), []
    original = CompactInterpreter.run_node
    monkeypatch.setattr(
        CompactInterpreter, "run_node", lambda self, node: run.append(node.name) or original(self, node)
    )
    ablate(net, graph, [(x, torch.arange(6) % 3)], cross_entropy)
    layers = ["linear", "gelu", "linear", "gelu", "linear"]
    assert len(run) == 5 + 4 + 5 * len(layers[2:]) + 4 * len(layers[4:])


class Several(nn.Module):
    """Returns a mapping, with a number that belongs to no example before the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        hidden = torch.relu(self.first(x))
        return {"size": hidden.square().mean(), "hidden": (hidden, 3), "scores": self.last(hidden)}


def test_the_loss_gets_what_the_network_returns() -> None:
    torch.manual_seed(0)
    net, x, targets = Several(), torch.randn(10, 4), torch.randint(0, 3, (10,))
    graph = sec.trace(net, x)
    plain = nn.Sequential(net.first, nn.ReLU(), net.last)

    def loss_fn(output: dict[str, Any], given: torch.Tensor) -> torch.Tensor:
        assert list(output) == ["size", "hidden", "scores"]
        assert output["hidden"][1] == 3
        return cross_entropy(output["scores"], given)

    found = ablate(net, graph, [(x[:6], targets[:6]), (x[6:], targets[6:])], loss_fn)
    assert found.loss == pytest.approx(cross_entropy(net(x)["scores"], targets).item(), rel=1e-5)
    assert not found  # the hidden units are an output
    assert ablate(plain, sec.trace(plain, x), [(x, targets)], cross_entropy).loss == pytest.approx(found.loss)


def test_a_loss_of_each_example_is_refused() -> None:
    net, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(10, 4)
    with pytest.raises(sec.UsageError, match="loss_fn returned a tensor of shape"):
        ablate(net, sec.trace(net, x), [(x, x)], lambda output, _: output.sum(1))
