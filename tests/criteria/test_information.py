from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateur.criteria import MutualInformation, information, score, watch
from secateur.criteria.information import as_labels, mutual_information, quantise
from secateur.errors import UsageError
from secateur.graph import trace
from tests.criteria.nets import CLASSES, Plain, data, make


def count(bins: list[int], classes: list[int]) -> float:
    """Mutual information by counting pairs in a dictionary."""
    total = len(bins)
    pairs: dict[tuple[int, int], int] = {}
    for pair in zip(bins, classes, strict=True):
        pairs[pair] = pairs.get(pair, 0) + 1
    return sum(
        n / total * math.log(n * total / (bins.count(one) * classes.count(other)))
        for (one, other), n in pairs.items()
    )


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=40),
    st.integers(2, 5),
)
def test_it_is_what_counting_gives(pairs: list[tuple[int, int]], bins: int) -> None:
    values = torch.tensor([[float(value), 2.0 - value] for value, _ in pairs])
    targets = torch.tensor([label for _, label in pairs])
    found = mutual_information(values, targets, bins)
    numbers = quantise(values, bins)
    for channel in range(2):
        wanted = count(numbers[:, channel].tolist(), targets.tolist())
        assert found[channel].item() == pytest.approx(max(wanted, 0), abs=1e-6)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.integers(2, 6))
def test_bins_are_ordered_equal_values_share_one_and_none_is_overfull(values: list[float], bins: int) -> None:
    numbers = quantise(torch.tensor(values)[:, None], bins)[:, 0].tolist()
    ranked = sorted(zip(values, numbers, strict=True))
    assert all(low[1] <= high[1] for low, high in itertools.pairwise(ranked))
    assert all(low[1] == high[1] for low, high in itertools.pairwise(ranked) if low[0] == high[0])
    assert set(numbers) <= set(range(bins))
    if len(set(values)) == len(values):
        assert max(numbers.count(number) for number in set(numbers)) <= math.ceil(len(values) / bins)


def test_scores_of_a_network_are_of_the_pooled_activations_and_do_not_depend_on_batches() -> None:
    net = make(Plain)
    inputs, targets = data(24)
    graph = trace(net, inputs[:2])
    criterion = MutualInformation(bins=3)
    scores = score(net, graph, criterion, [(inputs, targets)])
    parts = list(zip(inputs.split(7), targets.split(7), strict=True))
    assert score(net, graph, criterion, parts) == scores
    with torch.no_grad():
        a = F.relu(net.norm(net.a(inputs)))
        b = F.max_pool2d(F.relu(net.b(a)), 3)
    for name, pooled in (("a", a.mean((2, 3))), ("b", b.mean((2, 3)))):
        for channel in range(pooled.shape[1]):
            numbers = quantise(pooled[:, channel : channel + 1], 3)[:, 0].tolist()
            assert scores[name][channel].item() == pytest.approx(count(numbers, targets.tolist()), abs=1e-5)


def test_a_channel_that_tells_the_class_scores_most_and_a_constant_one_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
    nn.init.eye_(net[0].weight)
    targets = torch.arange(40) % 2
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
    inputs = torch.stack([targets * 2.0 - 1, noise, torch.ones(40)], dim=1)
    scores = score(net, trace(net, inputs), MutualInformation(2), [(inputs, targets)])["0"]
    assert scores[0].item() == pytest.approx(math.log(2))
    assert 0 <= scores[1] < 0.2
    assert scores[2] == 0


def test_watching_takes_the_targets_that_it_is_told_and_skips_passes_without() -> None:
    net = make(Plain)
    graph = trace(net, data(2)[0])
    parts = [data(6, seed=seed) for seed in range(3)]
    with watch(net, graph, "mutual-information") as watcher:
        for inputs, targets in parts:
            watcher.targets(targets)
            net(inputs)
            net(inputs + 1)
    assert watcher.scores() == score(net, graph, "mutual-information", parts)


def test_targets_of_several_kinds() -> None:
    assert as_labels(torch.eye(3)).tolist() == [0, 1, 2]
    values = torch.randn(30, 2)
    smooth = mutual_information(values, values[:, 0], 3)
    assert smooth[0].item() == pytest.approx(math.log(3), abs=1e-6)
    with pytest.raises(UsageError, match="not shape"):
        as_labels(torch.zeros(2, 3, 4))
    with pytest.raises(UsageError, match="not list"):
        as_labels([1, 2])
    with pytest.raises(UsageError, match="at least 2 bins"):
        MutualInformation(1)


def test_targets_of_the_wrong_number_are_refused() -> None:
    net = make(Plain)
    inputs, targets = data(4)
    with pytest.raises(UsageError, match="3 targets for 4 examples"):
        score(net, trace(net, inputs), "mutual-information", [(inputs, targets[:3])])


def test_many_channels_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values, targets = torch.randn(20, 9), torch.randint(0, CLASSES, (20,))
    whole = mutual_information(values, targets, 4)
    for cells in (1, 40, 100):
        monkeypatch.setattr(information, "_CELLS_AT_ONCE", cells)
        assert torch.equal(mutual_information(values, targets, 4), whole)
