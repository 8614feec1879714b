from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.graph import trace
from secateur.graph.groups import IntArray
from secateur.latency import Comparison, LatencyTable, Timings, latency_table
from secateur.plan import PruningPlan
from secateur.surgery import apply_plan
from tests.latency.fake_device import OVERHEAD, FakeTimer, compare, network_ms

X = torch.zeros(1, 3, 12, 12)


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 40, 3),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.Conv2d(40, 64, 3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 10, 3),
    )


@pytest.fixture(scope="module")
def built() -> tuple[nn.Module, LatencyTable, FakeTimer, Timings]:
    net, timer, timings = chain(), FakeTimer(), Timings()
    graph = trace(net, X)
    return (
        net,
        latency_table(net, graph, X, timings=timings, operator_timer=timer, network_timer=compare),
        timer,
        timings,
    )


def test_it_predicts_networks_that_were_never_run(
    built: tuple[nn.Module, LatencyTable, FakeTimer, Timings],
) -> None:
    net, table, _, _ = built
    graph = trace(net, X)
    rng = np.random.default_rng(0)
    for _ in range(30):
        keep = {"0": range(rng.integers(1, 41)), "3": range(rng.integers(1, 65))}
        plan = PruningPlan(graph, {name: tuple(kept) for name, kept in keep.items()})
        expected = network_ms(apply_plan(net, plan))
        assert float(table.milliseconds(plan.widths)) == pytest.approx(expected, rel=0.06)


def test_the_full_network_is_met_and_many_widths_are_predicted_at_once(
    built: tuple[nn.Module, LatencyTable, FakeTimer, Timings],
) -> None:
    net, table, _, _ = built
    whole = trace(net, X).widths
    assert float(table.milliseconds(whole)) == pytest.approx(network_ms(net), rel=0.002)
    assert table.calibration.overhead == pytest.approx(OVERHEAD, rel=0.02)
    assert table.calibration.factors == pytest.approx({"conv2d": 1, "batch_norm": 1, "relu": 1}, abs=0.02)
    many = np.stack([whole, whole // 2, np.maximum(whole // 3, 1)])[None]
    times = table.milliseconds(many)
    assert times.shape == (1, 3)
    each = [float(table.milliseconds(widths)) for widths in many[0]]
    assert times[0] == pytest.approx(each, abs=1e-12)


def test_many_widths_at_once_give_the_sum_of_the_entries(
    built: tuple[nn.Module, LatencyTable, FakeTimer, Timings],
) -> None:
    _, table, _, _ = built
    rng = np.random.default_rng(0)
    widths: IntArray = np.stack([rng.integers(1, 41, 50), rng.integers(1, 65, 50), np.full(50, 10)], 1)
    slow = np.full(50, table.calibration.overhead)
    for entry in table.entries:
        even, uneven = (table.calibration.factor(entry.kind, odd) for odd in (False, True))
        factors = np.where(entry.uneven(widths), uneven, even)
        slow += (factors * entry.milliseconds(widths) + table.calibration.per_call).sum(-1)
    assert table.milliseconds(widths) == pytest.approx(slow, rel=1e-12)


def test_equal_operators_are_measured_together_and_an_earlier_measurement_is_used_again(
    built: tuple[nn.Module, LatencyTable, FakeTimer, Timings],
) -> None:
    net, table, timer, timings = built
    assert max(Counter(timer.asked).values()) == 2  # the second time where a first one is in doubt
    again = FakeTimer()

    def no_network_timer(*_: object) -> Comparison:
        raise AssertionError("the networks were measured already")

    graph = trace(net, X)
    same = latency_table(net, graph, X, timings=timings, operator_timer=again, network_timer=no_network_timer)
    assert not again.asked
    some = np.array([[40, 64, 10], [13, 50, 10]])
    assert same.milliseconds(some).tolist() == table.milliseconds(some).tolist()
    assert same.calibration == table.calibration
    assert str(same) == str(table)


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    net, file = chain(), tmp_path / "timings.jsonl"
    graph = trace(net, X)
    first, second = FakeTimer(), FakeTimer()

    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latency_table(
            net, graph, X, timings=Timings(file), operator_timer=first, network_timer=compare, progress=stop
        )
    latency_table(net, graph, X, timings=Timings(file), operator_timer=second, network_timer=compare)
    assert first.asked
    assert max(Counter(first.asked + second.asked).values()) == 2


def test_progress_comes_to_an_end() -> None:
    net = chain()
    heard: list[tuple[int, int]] = []
    latency_table(
        net,
        trace(net, X),
        X,
        timings=Timings(),
        operator_timer=FakeTimer(),
        network_timer=compare,
        progress=lambda done, total: heard.append((done, total)),
    )
    assert [done for done, _ in heard] == list(range(1, heard[-1][1] + 1))


def test_a_table_lists_kinds_and_calibration_runs(
    built: tuple[nn.Module, LatencyTable, FakeTimer, Timings],
) -> None:
    net, table, _, _ = built
    lines = str(table).splitlines()
    assert "a made-up device" in lines[0]
    assert {line.split()[0] for line in lines[2:6]} == {"conv2d", "batch_norm", "relu", "overhead"}
    predicted, measured = table.calibration.runs[-1]
    assert lines[6] == f"network {predicted:.4g} ms predicted, {measured:.4g} ms measured"
    assert measured == network_ms(net)
    assert len(lines) == 6 + len(table.calibration.runs)


def test_another_number_of_examples_is_another_table() -> None:
    net, timer = chain(), FakeTimer()
    graph = trace(net, X)
    table = latency_table(
        net, graph, X.repeat(4, 1, 1, 1), timings=Timings(), operator_timer=timer, network_timer=compare
    )
    assert table.batch == 4
    assert any("float32[4,3,12,12]" in call for call in timer.asked)


def test_an_operator_that_refuses_other_sizes_counts_by_its_work() -> None:
    class Stubborn(FakeTimer):
        def __call__(self, call):  # type: ignore[no-untyped-def]
            if "conv2d" in call.name and call.specs[1].shape[0] not in (64, 40, 10):
                raise RuntimeError("no such size")
            return super().__call__(call)

    net = chain()
    graph = trace(net, X)
    table = latency_table(net, graph, X, timings=Timings(), operator_timer=Stubborn(), network_timer=compare)
    whole, half = graph.widths, np.array([20, 32, 10])
    assert 0 < float(table.milliseconds(half)) < float(table.milliseconds(whole))


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, a concatenation, a reshape and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.beside = nn.Conv2d(16, 12, 1)
        self.third = nn.Conv2d(16, 8, 1)
        self.norm = nn.LayerNorm(52)
        self.head = nn.Linear(52, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.depthwise(x)
        x = torch.cat([self.grouped(x), self.beside(x), self.third(x)], 1)
        return self.head(self.norm(x.mean((2, 3))))


def test_real_operators_of_every_kind_run_at_the_sizes_of_a_real_cut() -> None:
    net = Mixed().eval()
    x = torch.zeros(2, 3, 8, 8)
    graph = trace(net, x)
    table = latency_table(net, graph, x, timings=Timings())
    kinds = {"conv2d", "grouped conv2d", "add", "cat", "mean", "layer_norm", "linear"}
    assert kinds <= {entry.kind for entry in table.entries}
    assert kinds <= set(table.calibration.factors)
    least = np.where([group.prunable for group in graph.groups], 1, graph.widths)
    times = table.milliseconds(np.stack([graph.widths, least]))
    assert (times > 0).all()
    assert np.isfinite(times).all()


class Shifted(nn.Module):
    """Adds a number that is read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.register_buffer("shift", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x + x.new_full((1, 1, 1, 1), self.shift.item()))


def test_a_number_that_the_pass_computes_does_not_prevent_a_table() -> None:
    net = Shifted().eval()
    graph = trace(net, X)
    table = latency_table(net, graph, X, timings=Timings())
    assert {"conv2d", "new_full", "add"} <= {entry.kind for entry in table.entries}
    assert float(table.milliseconds(graph.widths)) > 0


class Picks(nn.Module):
    """Takes the two largest of its channels, so that two must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 6, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.a(x).relu()).topk(2, 1).values)
        return out


def test_no_calibration_run_has_fewer_channels_than_the_code_needs() -> None:
    net = Picks().eval()
    graph = trace(net, X)
    assert graph["b"].min_channels == 2
    ran: list[int] = []

    def runs(models: Mapping[str, nn.Module], inputs: Any, **given: Any) -> Comparison:
        ran.extend(model.b.out_channels for model in models.values())  # type: ignore[attr-defined]
        for model in models.values():
            model(inputs)
        return compare(models, inputs, **given)

    latency_table(net, graph, X, timings=Timings(), operator_timer=FakeTimer(), network_timer=runs)
    assert min(ran) == 2
