"""Latency: how long a forward pass takes, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur.errors import UsageError
from secateur.graph.capture import ExampleInputs, call_arguments
from secateur.heap import kept_heap
from secateur.latency.devices import device_of, wait
from secateur.latency.runtimes import Forward, Runtime, Session, find_runtime

_PRECISE = 0.01  # standard error up to which a ratio counts as known
_PATIENCE = 5  # times the least time: how long to look for that
_ERROR_OF_MEDIAN = (
    1.2533 / 1.349
)  # of normal numbers, by the distance of their quartiles, times the root of their count
_LEAST = 1e-9  # milliseconds; a clock may say that no time has passed


@dataclass(frozen=True)
class Latency:
    """Time of a forward pass: the median of repeated runs, and their quartiles.

    Attributes:
        median_ms: middle time, milliseconds.
        low_ms: lower quartile, milliseconds.
        high_ms: upper quartile, milliseconds.
        runs: number of timed runs.
        threads: CPU threads that PyTorch used within an operator.
        device: where the network ran.
        batch: number of examples in the inputs.
        runtime: how it was run.

    >>> print(Latency(12.34, 12.0, 12.9, 20, 1, "cpu", 8))
    12.3 ms (12.0 to 12.9, 20 runs, batch 8, cpu, 1 thread)
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    threads: int
    device: str
    batch: int
    runtime: str = "eager"

    @property
    def spread_ms(self) -> float:
        """Distance of the quartiles, milliseconds: the width of the noise."""
        return self.high_ms - self.low_ms

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.device == "cpu" else ""
        middle, low, high = _digits(self.median_ms, self.low_ms, self.high_ms)
        runtime = f", {self.runtime}" * (self.runtime != "eager")
        where = f"{self.device}{threads}{runtime}"
        return f"{middle} ms ({low} to {high}, {self.runs} runs, batch {self.batch}, {where})"


@dataclass(frozen=True)
class Comparison:
    """Latencies of several networks that were run in turn.

    Attributes:
        latencies: by name, in the order given; the first is what the others are held against.
        ratios: by name, how many times as long the first took in the same turn, the median over turns;
            a machine that is slow for a while is slow for both. Without, medians are divided.

    >>> fast, slow = Latency(5, 4.9, 5.1, 9, 1, "cpu", 1), Latency(10, 9, 11, 9, 1, "cpu", 1)
    >>> comparison = Comparison({"before": slow, "after": fast})
    >>> comparison.speedup("after"), comparison.is_noise("after")
    (2.0, False)
    >>> print(comparison)
    before  10.0 ms (9.0 to 11.0, 9 runs, batch 1, cpu, 1 thread)
    after   5.00 ms (4.90 to 5.10, 9 runs, batch 1, cpu, 1 thread)  2.00 times as fast
    """

    latencies: Mapping[str, Latency]
    ratios: Mapping[str, float] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """Name of the network that the others are held against."""
        return next(iter(self.latencies))

    def speedup(self, name: str) -> float:
        """How many times as fast as the reference a network is."""
        if name in self.ratios:
            return self.ratios[name]
        return self.latencies[self.reference].median_ms / self.latencies[name].median_ms

    def is_noise(self, name: str) -> bool:
        """Whether the difference to the reference is smaller than the larger spread of the two."""
        one, other = self.latencies[self.reference], self.latencies[name]
        return abs(one.median_ms - other.median_ms) < max(one.spread_ms, other.spread_ms)

    def __str__(self) -> str:
        width = max(map(len, self.latencies))
        return "\n".join(
            f"{name:<{width}}  {latency}{self._verdict(name)}" for name, latency in self.latencies.items()
        )

    def _verdict(self, name: str) -> str:
        if name == self.reference:
            return ""
        if self.is_noise(name):
            return "  no difference beyond noise"
        return f"  {self.speedup(name):.2f} times as fast"


Measurable = nn.Module | Session
"""A network, or what runs one that is no module any more."""


def measure_latency(
    model: Measurable,
    example_inputs: ExampleInputs,
    *,
    runtime: str | Runtime = "eager",
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 1.0,
    threads: int | None = None,
) -> Latency:
    """Measures the time of a forward pass in evaluation and inference mode.

    Runs are repeated until there are ``min_runs`` of them and ``min_seconds`` have passed. On an
    accelerator each run waits for the device. The network, its mode and the number of threads are
    left as they were; inputs are moved to the network's device before the clock starts.

    Args:
        model: the network; or a ``Session``, such as the file that
            :func:`secateur.open_exported` opened.
        example_inputs: one tensor, a tuple of arguments, or a dict of named arguments.
        runtime: how to run it: ``"eager"``, ``"channels-last"``, ``"compile"``, ``"bf16"``, or a
            ``Runtime`` of your own. A session has its own and knows no other.
        warmup: runs before the clock starts.
        min_runs: least number of timed runs.
        min_seconds: least time spent on timed runs, seconds.
        threads: CPU threads within an operator; by default what PyTorch is set to.

    Returns:
        Median, quartiles, and the conditions under which they hold.

    Raises:
        UsageError: if a number is out of range.

    >>> latency = measure_latency(nn.Linear(4, 4), torch.ones(2, 4), min_runs=5, min_seconds=0)
    >>> latency.runs, latency.batch, latency.low_ms <= latency.median_ms <= latency.high_ms
    (5, 2, True)
    """
    comparison = compare_latency(
        {"": model},
        example_inputs,
        runtime=runtime,
        warmup=warmup,
        min_runs=min_runs,
        min_seconds=min_seconds,
        threads=threads,
    )
    return comparison.latencies[""]


def compare_latency(
    models: Mapping[str, Measurable],
    example_inputs: ExampleInputs,
    *,
    runtime: str | Runtime | Mapping[str, str | Runtime] = "eager",
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 1.0,
    threads: int | None = None,
) -> Comparison:
    """Measures several networks in turn, run by run, so that a busy machine slows all alike.

    Where the ratios of their times are not known to one percent by then (standard error of the median over
    turns), the turns go on for up to five times as long.

    Args:
        models: networks by name; the first is what the others are held against.
        example_inputs: inputs that all of them take.
        runtime: how to run them, as for :func:`measure_latency`; or how to run each, by its name.
        warmup: runs of each network before the clock starts.
        min_runs: least number of timed runs of each network.
        min_seconds: least time spent on timed runs, seconds per network.
        threads: CPU threads within an operator; by default what PyTorch is set to.

    Returns:
        The latencies; differences smaller than the spread are called noise.

    Raises:
        UsageError: if there are no networks or a number is out of range.

    >>> nets = {"before": nn.Linear(64, 64), "after": nn.Linear(64, 8)}
    >>> comparison = compare_latency(nets, torch.ones(2, 64), min_runs=5, min_seconds=0)
    >>> list(comparison.latencies), comparison.speedup("before")
    (['before', 'after'], 1.0)
    """
    if not models:
        raise UsageError("there is no network to measure")
    if warmup < 0 or min_runs < 1 or not min_seconds >= 0 or (threads is not None and threads < 1):
        raise UsageError(
            f"warmup ({warmup}) and min_seconds ({min_seconds}) are at least 0, "
            f"min_runs ({min_runs}) and threads ({threads}) at least 1"
        )
    runtimes = runtime if isinstance(runtime, Mapping) else dict.fromkeys(models, runtime)
    with _threads(threads), kept_heap():
        timers = {name: _timer(model, example_inputs, runtimes[name]) for name, model in models.items()}
        times: dict[str, list[float]] = {name: [] for name in models}
        for timer in timers.values():
            for _ in range(warmup):
                timer()
        spent = 0.0
        while not _enough(times, spent / len(models), min_runs, min_seconds):
            for name, timer in timers.items():
                seconds = timer()
                times[name].append(seconds * 1e3)
                spent += seconds
        batch = next((leaf.shape[0] for leaf in tree_leaves(example_inputs) if _batched(leaf)), 1)
        return Comparison(
            {
                name: _summary(times[name], _place_of(model), batch, _name(model, runtimes[name]))
                for name, model in models.items()
            },
            {name: math.exp(np.median(logs)) for name, logs in _log_ratios(times).items()},
        )


def _log_ratios(times: Mapping[str, list[float]]) -> dict[str, npt.NDArray[np.float64]]:
    """Of each network, how many times as long the first one took in each turn, as a logarithm."""
    logs = {name: np.log(np.maximum(taken, _LEAST)) for name, taken in times.items()}
    first = next(iter(logs.values()))
    return {name: first - taken for name, taken in logs.items()}


def _enough(times: Mapping[str, list[float]], seconds: float, min_runs: int, min_seconds: float) -> bool:
    """Whether to stop: after enough runs and time, once ratios are known well or patience is at its end."""
    runs = len(next(iter(times.values())))
    if runs < min_runs or seconds < min_seconds:
        return False
    if seconds >= _PATIENCE * min_seconds:
        return True
    spreads = [np.subtract(*np.percentile(logs, (75, 25))) for logs in _log_ratios(times).values()]
    return bool(_ERROR_OF_MEDIAN * max(spreads) / math.sqrt(runs) <= _PRECISE)


def _timer(model: Measurable, example_inputs: ExampleInputs, runtime: str | Runtime) -> Callable[[], float]:
    """A function that runs the network once and returns the seconds it took."""
    device = _place_of(model)
    inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), example_inputs)
    chosen = find_runtime(runtime)
    with torch.inference_mode():
        forward = chosen.prepare(model, inputs) if isinstance(model, nn.Module) else _session(model, inputs)

    def run() -> float:
        with torch.inference_mode():
            wait(device)
            begin = time.perf_counter()
            forward()
            wait(device)
            return time.perf_counter() - begin

    return run


def _session(session: Session, inputs: ExampleInputs) -> Forward:
    args, kwargs = call_arguments(inputs)
    return lambda: session(*args, *kwargs.values())


def _place_of(model: Measurable) -> torch.device:
    return device_of(model) if isinstance(model, nn.Module) else model.device


def _name(model: Measurable, runtime: str | Runtime) -> str:
    return find_runtime(runtime).name if isinstance(model, nn.Module) else model.runtime


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _summary(times: list[float], device: torch.device, batch: int, runtime: str) -> Latency:
    low, median, high = (float(value) for value in np.percentile(times, (25, 50, 75)))
    return Latency(median, low, high, len(times), torch.get_num_threads(), str(device), batch, runtime)


def _batched(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _digits(*numbers: float) -> list[str]:
    """Numbers with as many decimals as give the first three digits."""
    size = int(np.floor(np.log10(max(abs(numbers[0]), 1e-9))))
    return [f"{number:.{min(max(2 - size, 0), 6)}f}" for number in numbers]
