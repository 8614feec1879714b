from __future__ import annotations

import itertools
import time

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.latency import Comparison, Latency, compare_latency, measure_latency


class Log:
    """A list out of sight of what puts a network back: it has no attributes to look into."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls: list[str] = []


class Sleeper(nn.Module):
    """Takes a known time, and notes how it is called."""

    def __init__(self, milliseconds: float, log: Log | None = None, name: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(3)
        self.seconds = milliseconds / 1e3
        self.log = Log() if log is None else log
        self.name = name

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.log.calls.append(self.name)
        time.sleep(self.seconds)
        return self.norm(x) * self.weight * scale


class SimulatedClock:
    """Stands in for ``time``: only sleeping takes time, and exactly as long as it says."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def simulated_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that do not depend on what else the machine does."""
    clock = SimulatedClock()
    monkeypatch.setattr("secateur.latency.measure.time", clock)
    monkeypatch.setitem(globals(), "time", clock)


def test_it_measures_the_time_and_its_conditions() -> None:
    log = Log()
    net = Sleeper(5, log)
    latency = measure_latency(net, torch.ones(7, 3), warmup=2, min_runs=5, min_seconds=0, threads=1)
    assert len(log.calls) == 7
    assert 5 <= latency.low_ms <= latency.median_ms <= latency.high_ms
    assert latency.median_ms < 50
    assert (latency.runs, latency.batch, latency.threads, latency.device) == (5, 7, 1, "cpu")


def test_runs_go_on_until_enough_time_has_passed() -> None:
    latency = measure_latency(Sleeper(2), torch.ones(2, 3), warmup=0, min_runs=1, min_seconds=0.05)
    assert 5 <= latency.runs <= 25


def test_the_network_and_the_threads_are_left_as_they_were() -> None:
    net = Sleeper(0).train()
    net.norm.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    threads = torch.get_num_threads()
    measure_latency(net, torch.ones(2, 3), min_runs=2, min_seconds=0, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert net.training
    assert not net.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_everything_is_put_back_when_the_network_fails() -> None:
    net = Sleeper(0).train()
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        measure_latency(net, torch.ones(2, 4), threads=threads + 1)
    assert net.training
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    "inputs", [torch.ones(4, 3), (torch.ones(4, 3), 2.0), {"x": torch.ones(4, 3), "scale": 2.0}]
)
def test_inputs_may_be_a_tensor_a_tuple_or_a_dict(inputs: object) -> None:
    assert measure_latency(Sleeper(0), inputs, min_runs=1, min_seconds=0).batch == 4  # type: ignore[arg-type]


def test_networks_are_compared_run_by_run() -> None:
    log = Log()
    nets = {"slow": Sleeper(8, log, "slow"), "fast": Sleeper(2, log, "fast")}
    comparison = compare_latency(nets, torch.ones(2, 3), warmup=1, min_runs=6, min_seconds=0)
    assert log.calls == ["slow", "fast"] * 7
    assert comparison.reference == "slow"
    assert comparison.speedup("slow") == 1
    assert comparison.speedup("fast") > 1.5
    assert not comparison.is_noise("fast")
    assert "times as fast" in str(comparison).splitlines()[1]


class Uneven(Sleeper):
    """Takes four times as long every other time."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if len(self.log.calls) % 2:
            time.sleep(3 * self.seconds)
        return super().forward(x, scale)


@pytest.mark.usefixtures("simulated_clock")
def test_there_are_more_rounds_where_the_ratio_is_uncertain() -> None:
    """At most five times the least time is spent."""
    steady, uneven = Sleeper(2), Uneven(2)
    found = compare_latency({"one": steady, "other": Sleeper(2)}, torch.ones(2, 3), min_seconds=0.1)
    doubt = compare_latency({"one": steady, "other": uneven}, torch.ones(2, 3), min_seconds=0.1)
    spent = {
        name: sum(item.median_ms * item.runs for item in comparison.latencies.values()) / 2e3
        for name, comparison in (("found", found), ("doubt", doubt))
    }
    assert 0.08 < spent["found"] < 0.25
    assert 0.3 < spent["doubt"] < 0.9


class Listed(Sleeper):
    """Takes these times, again and again."""

    def __init__(self, *milliseconds: float) -> None:
        super().__init__(0)
        self.times = itertools.cycle(milliseconds)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        time.sleep(next(self.times) / 1e3)
        return super().forward(x, scale)


@pytest.mark.usefixtures("simulated_clock")
def test_the_ratio_is_that_within_one_round() -> None:
    """Medians alone would call these two equally fast."""
    nets = {"one": Listed(10, 20, 30), "other": Listed(20, 30, 10)}
    comparison = compare_latency(nets, torch.ones(2, 3), warmup=0, min_runs=3, min_seconds=0)
    assert comparison.speedup("one") == 1
    assert comparison.speedup("other") == pytest.approx(2 / 3)


def latency(median: float, spread: float) -> Latency:
    return Latency(median, median - spread / 2, median + spread / 2, 9, 2, "cuda:0", 1)


@pytest.mark.parametrize(
    ("one", "other", "noise"),
    [((10, 1), (9.5, 0.1), True), ((10, 0.1), (9.5, 0.1), False), ((10, 0.1), (9.5, 0.6), True)],
)
def test_differences_within_the_spread_are_noise(
    one: tuple[float, float], other: tuple[float, float], noise: bool
) -> None:
    comparison = Comparison({"one": latency(*one), "other": latency(*other)})
    assert comparison.is_noise("other") is noise
    assert ("no difference beyond noise" in str(comparison)) is noise


def test_a_latency_is_one_line() -> None:
    assert str(latency(123.4, 2)) == "123 ms (122 to 124, 9 runs, batch 1, cuda:0)"
    assert str(Latency(0.01234, 0.012, 0.013, 5, 2, "cpu", 8)) == (
        "0.0123 ms (0.0120 to 0.0130, 5 runs, batch 8, cpu, 2 threads)"
    )


@pytest.mark.parametrize("bad", [{"warmup": -1}, {"min_runs": 0}, {"min_seconds": -1}, {"threads": 0}])
def test_wrong_numbers_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least"):
        measure_latency(Sleeper(0), torch.ones(2, 3), **bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no network"):
        compare_latency({}, torch.ones(1))
