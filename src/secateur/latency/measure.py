"""Measure the time of whole networks; several are run alternately, so that a busy machine slows all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from secateur._compat import tree_leaves, tree_map_only
from secateur.devices import device_of, wait
from secateur.errors import SecateurError, UsageError
from secateur.graph.capture.obstacles import explain_call
from secateur.graph.capture.program import ExampleInputs, call_arguments, mode_of
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.latency.pytorch_runtimes import PreparedNetwork, PyTorchRuntime, find_runtime
from secateur.untouched import untouched

Key = TypeVar("Key", bound=Hashable)

Measurable = nn.Module | PreparedNetwork
"""A network, or a prepared network that is not a module."""

_PRECISE = 0.01  # largest standard error of a ratio that is accurate enough
_PATIENCE = 5  # largest multiple of the minimum time that is spent to reach that
_QUARTILES = 1.349  # distance of the quartiles of normal numbers, in standard deviations
_MEDIAN = 1.2533  # standard error of the median of normal numbers, in standard errors of the mean
_LEAST = 1e-9  # milliseconds; two readings of a clock may be equal


@dataclass(frozen=True)
class Latency:
    """Time of a forward pass: the median of repeated runs, and their quartiles.

    Attributes:
        median_ms: median time, milliseconds.
        low_ms: lower quartile, milliseconds.
        high_ms: upper quartile, milliseconds.
        runs: number of timed runs.
        threads: CPU threads that PyTorch used within an operator.
        device: where the network ran.
        batch: number of examples in the inputs.
        runtime: name of the runtime that ran it.

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

    @classmethod
    def of(
        cls, times: Sequence[float], *, threads: int, device: str, batch: int, runtime: str = "eager"
    ) -> Latency:
        """Summarise the times of repeated runs.

        Args:
            times: of the runs, milliseconds.
            threads: CPU threads within an operator.
            device: where they ran.
            batch: number of examples in the inputs.
            runtime: name of the runtime.

        >>> Latency.of([3.0, 1.0, 2.0], threads=1, device="cpu", batch=8).median_ms
        2.0
        """
        low, median, high = (float(value) for value in np.percentile(times, (25, 50, 75)))
        return cls(median, low, high, len(times), threads, device, batch, runtime)

    @property
    def spread_ms(self) -> float:
        """Return the distance of the quartiles, milliseconds: a measure of the noise."""
        return self.high_ms - self.low_ms

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.device == "cpu" else ""
        middle, low, high = _three_digits(self.median_ms, self.low_ms, self.high_ms)
        runtime = f", {self.runtime}" * (self.runtime != "eager")
        where = f"{self.device}{threads}{runtime}"
        return f"{middle} ms ({low} to {high}, {self.runs} runs, batch {self.batch}, {where})"


@dataclass(frozen=True)
class Comparison:
    """Latencies of several networks that were run alternately.

    Attributes:
        latencies: by name, in the order given; the first is the reference.
        ratios: by name, the time of the reference divided by that of the network in the same round, the
            median over rounds, which a temporarily slow machine does not bias. Without, medians are divided.

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
        """Name of the network that the others are compared with."""
        return next(iter(self.latencies))

    def speedup(self, name: str) -> float:
        """Return how many times as fast as the reference a network is."""
        if name in self.ratios:
            return self.ratios[name]
        return self.latencies[self.reference].median_ms / self.latencies[name].median_ms

    def is_noise(self, name: str) -> bool:
        """Return whether the difference to the reference is smaller than the larger spread of the two."""
        one, other = self.latencies[self.reference], self.latencies[name]
        return abs(one.median_ms - other.median_ms) < max(one.spread_ms, other.spread_ms)

    def conditions(self) -> dict[str, Any]:
        """Return the conditions of the reference, and the quartiles of all, as plain values."""
        one = self.latencies[self.reference]
        return {
            "device": one.device,
            "threads": one.threads,
            "batch": one.batch,
            "runs": one.runs,
            "quartiles_ms": {name: [item.low_ms, item.high_ms] for name, item in self.latencies.items()},
        }

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


def measure_latency(
    model: Measurable,
    example_inputs: ExampleInputs,
    *,
    runtime: str | PyTorchRuntime = "eager",
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 1.0,
    threads: int | None = None,
) -> Latency:
    """Measure the time of a forward pass in evaluation and inference mode.

    Runs are repeated until there are ``min_runs`` of them and ``min_seconds`` have passed. On an
    accelerator each run waits for the device. The network, its mode and the number of threads are
    restored; inputs are moved to the network's device before the timed runs.

    Args:
        model: the network; or a ``PreparedNetwork``, such as the file that
            :func:`secateur.runtimes.open_exported` opened.
        example_inputs: one tensor, a tuple of arguments, or a dict of named arguments.
        runtime: how to run it: ``"eager"``, ``"channels-last"``, ``"compile"``, ``"bf16"``, or a
            ``PyTorchRuntime``. A prepared network is run as it is.
        warmup: runs before the timed runs.
        min_runs: least number of timed runs.
        min_seconds: least time spent on timed runs, seconds.
        threads: CPU threads within an operator; by default what PyTorch is set to.

    Returns:
        Median, quartiles, and the conditions under which they hold.

    Raises:
        UsageError: if a number is out of range, the network does not run on the inputs, or it is wrapped, for
            example by ``torch.compile``.

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
    runtime: str | PyTorchRuntime | Mapping[str, str | PyTorchRuntime] = "eager",
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 1.0,
    threads: int | None = None,
) -> Comparison:
    """Measure several networks alternately, run by run, so that a busy machine slows all alike.

    Where the ratios of their times are not known to one percent by then (standard error of the median over
    rounds), measuring continues for up to five times as long.

    Args:
        models: networks by name; the first is the reference that the others are compared with.
        example_inputs: inputs that all of them take.
        runtime: how to run them, as for :func:`measure_latency`; or how to run each, by its name.
        warmup: runs of each network before the timed runs.
        min_runs: least number of timed runs of each network.
        min_seconds: least time spent on timed runs, seconds per network.
        threads: CPU threads within an operator; by default what PyTorch is set to.

    Returns:
        The latencies; differences smaller than the spread are called noise.

    Raises:
        UsageError: if there are no networks, one is wrapped, or a number is out of range.

    >>> nets = {"before": nn.Linear(64, 64), "after": nn.Linear(64, 8)}
    >>> comparison = compare_latency(nets, torch.ones(2, 64), min_runs=5, min_seconds=0)
    >>> list(comparison.latencies), comparison.speedup("before")
    (['before', 'after'], 1.0)
    """
    check_timing(models.values(), warmup, min_runs, min_seconds, threads)
    runtimes = runtime if isinstance(runtime, Mapping) else dict.fromkeys(models, runtime)
    networks = [model for model in models.values() if isinstance(model, nn.Module)]
    with untouched(*networks), torch_threads(threads), _explained(networks, example_inputs):
        measured = interleaved_timing(
            {name: _single_run(model, example_inputs, runtimes[name]) for name, model in models.items()},
            warmup=warmup,
            min_runs=min_runs,
            min_seconds=min_seconds,
        )
        latencies = {
            name: Latency.of(
                measured.times[name],
                threads=torch.get_num_threads(),
                device=str(_device(model)),
                batch=batch_size(example_inputs),
                runtime=find_runtime(runtimes[name]).name if isinstance(model, nn.Module) else model.runtime,
            )
            for name, model in models.items()
        }
    first = next(iter(models))
    return Comparison(latencies, {name: measured.ratio(name, to=first) for name in models})


def check_timing(
    models: Collection[object], warmup: int, min_runs: int, min_seconds: float, threads: int | None
) -> None:
    """Refuse to time no network, a wrapped one, or for a time that makes no sense.

    Raises:
        UsageError: there is no network, one is wrapped, or a number is out of range.
    """
    if not models:
        raise UsageError("there is no network to measure; give at least one")
    if warmup < 0 or min_runs < 1 or not min_seconds >= 0 or (threads is not None and threads < 1):
        raise UsageError(
            f"warmup ({warmup}) and min_seconds ({min_seconds}) must be at least 0, "
            f"min_runs ({min_runs}) and threads ({threads}) at least 1"
        )
    for model in models:
        if isinstance(model, nn.Module):  # others are networks that a runtime has prepared
            refuse_wrapped(model)


@contextmanager
def _explained(networks: Sequence[nn.Module], inputs: ExampleInputs) -> Iterator[None]:
    """Explain the error if a network does not run on its inputs."""
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        for model in networks:
            with mode_of(model, training=False), torch.inference_mode():
                failure = explain_call(model, _placed(inputs, device_of(model)))
            if failure is not None:
                raise UsageError(f"the network cannot be measured with these inputs: {failure}") from error
        raise


def _placed(inputs: ExampleInputs, device: torch.device) -> ExampleInputs:
    moved: ExampleInputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
    return moved


def batch_size(example_inputs: ExampleInputs) -> int:
    """Return the first size of the first tensor among the inputs that has dimensions; 1 without one.

    >>> batch_size({"scale": torch.tensor(2.0), "x": torch.ones(8, 3)})
    8
    """
    tensors = (leaf for leaf in tree_leaves(example_inputs) if isinstance(leaf, Tensor))
    return next((int(tensor.shape[0]) for tensor in tensors if tensor.ndim), 1)


def _single_run(
    model: Measurable, example_inputs: ExampleInputs, runtime: str | PyTorchRuntime
) -> Callable[[], None]:
    """Return a function that runs the network once and returns when the device is done."""
    device = _device(model)
    inputs = _placed(example_inputs, device)
    chosen = find_runtime(runtime)
    with torch.inference_mode():
        if isinstance(model, nn.Module):
            args, kwargs = call_arguments(tree_map_only(Tensor, chosen.lay_out, inputs))
            call = chosen.prepare(model)
            if chosen.compiles:
                call(*args, **kwargs)
        else:
            args, kwargs = call_arguments(inputs)
            args, kwargs, call = (*args, *kwargs.values()), {}, model
    wait(device)

    def run() -> None:
        with torch.inference_mode():
            call(*args, **kwargs)
            wait(device)

    return run


def _device(model: Measurable) -> torch.device:
    return device_of(model) if isinstance(model, nn.Module) else model.device


@dataclass(frozen=True)
class InterleavedTimes(Generic[Key]):
    """Times of several functions that ran alternately.

    Attributes:
        times: of each, milliseconds, one per round.

    >>> measured = InterleavedTimes({"before": [10.0, 20.0, 30.0], "after": [5.0, 10.0, 16.0]})
    >>> round(measured.ratio("after", to="before"), 9)
    2.0
    """

    times: Mapping[Key, list[float]]

    def ratio(self, name: Key, to: Key) -> float:
        """Return the time of ``to`` over that of ``name`` in the same round, the median over rounds.

        A machine that is slow for a while is slow for both.
        """
        return math.exp(np.median(self._log_ratios(name, to)))

    def error(self, name: Key, to: Key) -> float:
        """Return the standard error of that ratio, as a share of it."""
        logs = self._log_ratios(name, to)
        low, high = np.percentile(logs, (25, 75))
        return float(_MEDIAN * (high - low) / _QUARTILES / math.sqrt(len(logs)))

    def _log_ratios(self, name: Key, to: Key) -> npt.NDArray[np.float64]:
        one, other = (np.log(np.maximum(self.times[key], _LEAST)) for key in (to, name))
        return np.asarray(one - other)


def interleaved_timing(
    runs: Mapping[Key, Callable[[], object]],
    references: Mapping[Key, Key] | None = None,
    *,
    threads: int | None = None,
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 1.0,
) -> InterleavedTimes[Key]:
    """Time several functions alternately, so that a busy machine slows all alike.

    In each round every function runs once. There are at least ``min_runs`` rounds, and at least
    ``min_seconds`` are spent on each function. Where the ratios of the times are not known to one percent by
    then (standard error of the median over rounds), there are more rounds, for up to five times as long.
    Memory that a run frees is kept for the next. The number of threads and the memory are restored
    afterwards.

    Args:
        runs: functions by name; each returns when its work is done.
        references: the name that each is compared with, by name; the first of all if not given.
        threads: of PyTorch, within an operator; unchanged if not given.
        warmup: runs of each before the timed runs.
        min_runs: least number of timed runs of each.
        min_seconds: least time spent on each, seconds.

    Returns:
        The times.

    >>> measured = interleaved_timing({"sum": lambda: torch.ones(9).sum()}, min_runs=4, min_seconds=0)
    >>> len(measured.times["sum"]), measured.ratio("sum", to="sum")
    (4, 1.0)
    """
    pairs = dict.fromkeys(runs, next(iter(runs))) if references is None else references
    measured: InterleavedTimes[Key] = InterleavedTimes({name: [] for name in runs})
    with torch_threads(threads):
        for run in runs.values():
            for _ in range(warmup):
                run()
        rounds, spent = 0, 0.0
        while not (
            rounds >= min_runs
            and spent / len(runs) >= min_seconds
            and (spent / len(runs) >= _PATIENCE * min_seconds or _precise(measured, pairs))
        ):
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                seconds = time.perf_counter() - begin
                measured.times[name].append(seconds * 1e3)
                spent += seconds
            rounds += 1
    return measured


def _precise(measured: InterleavedTimes[Key], pairs: Mapping[Key, Key]) -> bool:
    return all(measured.error(name, to) <= _PRECISE for name, to in pairs.items())


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of threads that PyTorch uses within an operator for a block; None changes nothing."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _three_digits(*numbers: float) -> list[str]:
    """Format numbers with as many decimals as show three digits of the first."""
    size = int(np.floor(np.log10(max(abs(numbers[0]), 1e-9))))
    return [f"{number:.{min(max(2 - size, 0), 6)}f}" for number in numbers]
