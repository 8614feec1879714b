"""Latency: how long a forward pass takes, measured."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur.errors import UsageError
from secateur.graph.capture import ExampleInputs, call_arguments
from secateur.graph.wrappers import refuse_wrapped
from secateur.latency.comparison import Comparison, Latency
from secateur.latency.devices import device_of, wait
from secateur.latency.runtimes import Forward, Runtime, Session, find_runtime
from secateur.latency.turns import take_turns, torch_threads
from secateur.untouched import untouched

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
            :func:`secateur.runtimes.open_exported` opened.
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
        UsageError: if a number is out of range, or the network is wrapped, for example by ``torch.compile``.

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
        UsageError: if there are no networks, one is wrapped, or a number is out of range.

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
    for model in models.values():
        refuse_wrapped(model)
    runtimes = runtime if isinstance(runtime, Mapping) else dict.fromkeys(models, runtime)
    networks = [model for model in models.values() if isinstance(model, nn.Module)]
    with untouched(*networks), torch_threads(threads):
        turns = take_turns(
            {name: _forward(model, example_inputs, runtimes[name]) for name, model in models.items()},
            warmup=warmup,
            min_runs=min_runs,
            min_seconds=min_seconds,
        )
        batch = next((leaf.shape[0] for leaf in tree_leaves(example_inputs) if _batched(leaf)), 1)
        latencies = {
            name: Latency.of(
                turns.times[name],
                threads=torch.get_num_threads(),
                device=str(_place_of(model)),
                batch=batch,
                runtime=_name(model, runtimes[name]),
            )
            for name, model in models.items()
        }
    first = next(iter(models))
    return Comparison(latencies, {name: turns.ratio(name, to=first) for name in models})


def _forward(model: Measurable, example_inputs: ExampleInputs, runtime: str | Runtime) -> Forward:
    """A function that runs the network once and returns when it is done."""
    device = _place_of(model)
    inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), example_inputs)
    chosen = find_runtime(runtime)
    with torch.inference_mode():
        forward = chosen.prepare(model, inputs) if isinstance(model, nn.Module) else _session(model, inputs)
    wait(device)

    def run() -> None:
        with torch.inference_mode():
            forward()
            wait(device)

    return run


def _session(session: Session, inputs: ExampleInputs) -> Forward:
    args, kwargs = call_arguments(inputs)
    return lambda: session(*args, *kwargs.values())


def _place_of(model: Measurable) -> torch.device:
    return device_of(model) if isinstance(model, nn.Module) else model.device


def _name(model: Measurable, runtime: str | Runtime) -> str:
    return find_runtime(runtime).name if isinstance(model, nn.Module) else model.runtime


def _batched(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0
