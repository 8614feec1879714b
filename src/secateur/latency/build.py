"""Build a latency table: time the operators of a network, then the whole network at several widths.

The operators are timed one by one. Calling them takes time that none of these times includes, and what an
operator leaves in the caches makes the next faster or slower. So the whole network runs at several widths
too, and its times are explained by least squares:

    time of the network = overhead + sum over kinds of factor * time of the operators of that kind
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import lsq_linear
from torch import nn

from secateur.devices import device_of
from secateur.graph import ChannelGraph, ExampleInputs
from secateur.graph.capture.program import capture
from secateur.graph.channel_graph import Keep
from secateur.graph.cutting.tensors import by_tensor, copy_with, cut_tensor, named_tensors, positions_left
from secateur.graph.groups import IntArray
from secateur.latency.measure import Comparison, batch_size, compare_latency
from secateur.latency.operator_timer import DeviceTimer, OperatorTimer, Timings
from secateur.latency.operators import Operator, find_operators
from secateur.latency.piecewise_linear import FloatArray, OperatorTime, measure_operator_time
from secateur.latency.pytorch_runtimes import PyTorchRuntime, find_runtime
from secateur.latency.table import Calibration, LatencyTable, TableEntry

NetworkTimer = Callable[[Mapping[str, nn.Module], ExampleInputs], Comparison]
"""Measures whole networks, by name, alternately; the first is the reference."""

OperatorMilliseconds = Callable[..., float]
"""Returns the time of an operator with axes of given sizes; the second of two with ``again=True``."""

Progress = Callable[[int, int], None]
"""Called with the number of finished steps, and of all steps."""

_NEGLIGIBLE = 5e-4  # accepted error at one place of a network, as a share of the network's time
_LEAST_MS = 1e-6  # milliseconds; no operator takes less

_RUNS = 9  # widths at which the whole network runs
_NARROWEST = 0.1  # share of all widths in the last of them
_UNEVEN = (
    0.5  # variation of the widths of single groups around their share, so that kinds can be distinguished
)
_MIN_RUNS, _MIN_SECONDS = 3, 0.4  # for each of them

_NOISE = 0.02  # least error that is assumed for a time of the network, as a share
_NOISE_OF_WHOLE = 0.005  # the same at full width, to which all shares refer
_SETTLED = 0.05  # relative change of the estimated error at which iterating stops
_ROUNDS = 20  # most iterations; the error settles in a few
_PRIOR = 0.3  # expected deviation of a factor from 1, and the largest error of a time of the network
_LEAST_FACTOR = 0.05


def latency_table(
    model: nn.Module,
    graph: ChannelGraph,
    example_inputs: ExampleInputs,
    *,
    runtime: str | PyTorchRuntime = "eager",
    timings: Timings | None = None,
    operator_timer: OperatorTimer | None = None,
    network_timer: NetworkTimer | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure how long a network takes on this device, as a function of the widths of its groups.

    Every operator is timed alone, at enough sizes to show the steps of its time. Then the whole
    network runs at several widths, and the sum of the operators is calibrated with its times. Each time is
    kept in ``timings`` as soon as it is measured: an interrupted call continues where it stopped, and neither
    a later call nor another network with the same operators measures anything twice.

    Args:
        model: the network that was traced, on the device to be timed; it is not changed.
        graph: its channel graph.
        example_inputs: arguments of the timed forward pass; times hold for this number of examples.
        runtime: how the whole network is run, as for :func:`secateur.measure_latency`. Operators are
            timed one by one in any case, with channels last in memory if the runtime is ``"channels-last"``.
        timings: earlier times; by default the file of this user.
        operator_timer: times operators; by default on this device.
        network_timer: times whole networks; by default on this device.
        progress: called after each step.

    Returns:
        The table; :func:`secateur.make_plan` takes it as ``latency``.

    Raises:
        UsageError: for these inputs, the forward pass is not the one that was traced.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> x = torch.randn(1, 3, 12, 12)
        >>> graph = trace(net, x)
        >>> table = latency_table(net, graph, x, timings=Timings())
        >>> table.milliseconds(graph.widths) > 0, table.batch
        (np.True_, 1)
    """
    chosen = find_runtime(runtime)
    layout = "channels-last" if chosen.name == "channels-last" else "eager"
    timings = Timings.at_home() if timings is None else timings
    timer = operator_timer or DeviceTimer(device_of(model), layout)
    measure = _cached(timer, timings)
    operators = find_operators(graph, capture(model, example_inputs))
    steps, done = 2 * len(operators) + 1, 0

    def finish_step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps)

    total = 0.0
    for item in operators:
        total += measure(item, item.full) * len(item.modules)
        finish_step()
    entries = []
    for item in operators:
        time = _operator_time(measure, item, _NEGLIGIBLE * total / len(item.modules))
        entries.append(
            TableEntry(item.name, item.kind, item.modules, time, item.constants, item.slots, item.branches)
        )
        finish_step()

    def compare(widths: IntArray) -> Comparison:
        models = {"full": model, "narrow": _narrowed(model, graph, widths)}
        if network_timer is not None:
            return network_timer(models, example_inputs)
        return compare_latency(
            models, example_inputs, runtime=chosen, warmup=2, min_runs=_MIN_RUNS, min_seconds=_MIN_SECONDS
        )

    widths = _calibration_widths(graph)
    names = [_network_name(operators, row, chosen) for row in widths]
    network = _calibration_runs(names, widths, compare, timings, timer.conditions)
    finish_step()
    calibration = calibrate(*_times_by_kind(entries, widths), network)
    return LatencyTable(
        tuple(entries), calibration, batch_size(example_inputs), timer.conditions, chosen.name
    )


def _cached(timer: OperatorTimer, timings: Timings) -> OperatorMilliseconds:
    """Time operators at given sizes, unless their times are known; new times are added to the known ones."""

    def milliseconds(item: Operator, sizes: Sequence[int], again: bool = False) -> float:
        call = item.call(sizes)
        key = f"{call}, again" if again else str(call)
        found = timings.get(timer.conditions, key)
        if found is None:
            found = max(_LEAST_MS, timer(call))
            timings.put(timer.conditions, key, found)
        return found

    return milliseconds


def _operator_time(measure: OperatorMilliseconds, item: Operator, negligible: float) -> OperatorTime:
    """Measure an operator as a function of its sizes.

    Some operators refuse smaller sizes, because their other arguments are made for one size. Their time is
    assumed to be proportional to the sizes.
    """
    try:
        return measure_operator_time(
            item.axes,
            lambda sizes: measure(item, sizes),
            negligible,
            lambda sizes: measure(item, sizes, again=True),
        )
    except (RuntimeError, ValueError, IndexError, TypeError):
        full = measure(item, item.full)
        return measure_operator_time(
            item.axes,
            lambda sizes: full * float(np.prod([s / f for s, f in zip(sizes, item.full, strict=True)])),
            negligible,
        )


def _calibration_widths(graph: ChannelGraph) -> IntArray:
    """Choose widths of all groups, shape ``(runs, groups)``: the full ones, then decreasing shares."""
    rng = np.random.default_rng(0)
    full = graph.widths
    shares = np.linspace(1.0, _NARROWEST, _RUNS)[:, None]
    uneven = rng.uniform(1 - _UNEVEN, 1 + _UNEVEN, (_RUNS, len(full)))
    widths = np.round(full * shares * uneven).astype(np.int64).clip(1, full)
    widths[0] = full
    prunable = np.array([group.prunable for group in graph.groups], dtype=bool)
    return np.where(prunable, widths, full)


def _calibration_runs(
    names: Sequence[str],
    widths: IntArray,
    compare: Callable[[IntArray], Comparison],
    timings: Timings,
    conditions: str,
) -> FloatArray:
    """Measure the network at several widths.

    Each runs alternately with the full network, as a pruned network does later. If more networks alternated,
    they would displace each other's weights from the caches.

    Args:
        names: under which the times are kept, one per row of the widths.
        widths: of all groups, shape ``(runs, groups)``; the full network first.
        compare: measures the network of given widths, ``"narrow"``, alternately with ``"full"``.
        timings: known times; new ones are added.
        conditions: under which the times hold.

    Returns:
        Milliseconds of each, shape ``(runs,)``.
    """
    for name, row in zip(names, widths, strict=True):
        if timings.get(conditions, name) is None:
            found = compare(row)
            full = found.latencies["full"].median_ms
            # The machine may be slower now than during the first measurement of the full network.
            drift = timings.get(conditions, names[0])
            times = 1.0 if drift is None else drift / full
            timings.put(conditions, name, full / found.speedup("narrow") * times)
    return np.array([timings.get(conditions, name) for name in names], dtype=np.float64)


def _network_name(operators: Sequence[Operator], widths: IntArray, runtime: PyTorchRuntime) -> str:
    """Name a network by its operators at given widths, and its runtime."""
    calls: Counter[str] = Counter()
    for item in operators:
        sizes = np.einsum("g,pag->pa", widths, item.slots) + item.constants
        calls.update(str(item.call(place.tolist())) for place in sizes)
    text = "\n".join(f"{count} {call}" for call, count in sorted(calls.items()))
    return f"network {hashlib.sha256(text.encode()).hexdigest()[:24]}, {runtime.name}"


def _narrowed(model: nn.Module, graph: ChannelGraph, widths: IntArray) -> nn.Module:
    """Return a copy of the network with groups of given widths; the network itself at full width."""
    if np.array_equal(widths, graph.widths):
        return model
    plan = Keep(
        {group.name: range(width) for group, width in zip(graph.groups, widths.tolist(), strict=True)}
    )
    cuts = by_tensor(positions_left(graph, graph.after(plan)))
    named = named_tensors(model)
    tensors = {name: cut_tensor(named[name], kept) for name, kept in cuts.items()}
    return copy_with(model, tensors, graph.attributes_after(plan))


def _times_by_kind(entries: Sequence[TableEntry], widths: IntArray) -> tuple[list[str], FloatArray]:
    """Return the kinds of operators, and the time of each kind at each width, shape ``(widths, kinds)``."""
    sums: dict[str, FloatArray] = {}
    for entry in entries:
        sums[entry.kind] = sums.get(entry.kind, 0.0) + entry.milliseconds(widths).sum(-1)
    return list(sums), np.stack(list(sums.values()), axis=-1) if sums else np.zeros((len(widths), 0))


def calibrate(kinds: Sequence[str], operators: FloatArray, network: FloatArray) -> Calibration:
    """Fit an overhead and a factor for each kind of operator to measured times of the network.

    Factors are shrunk toward 1 (ridge regression); the shrinkage is stronger when the calibration runs are
    less informative, that is, when the fit leaves a larger error. Without shrinkage, noise would make some
    operators look cheap and bias plans toward them. The shrinkage is limited: otherwise, on a busy machine,
    which delays long runs but not short ones, nearly all of the network's time would be attributed to the
    overhead, which no cut lowers.

    Args:
        kinds: of operators.
        operators: time of each kind at each width, each operator timed alone, milliseconds, shape
            ``(widths, kinds)``; the full network first.
        network: time of the network at each width, milliseconds, shape ``(widths,)``.

    Returns:
        Overhead and factors, none of them negative.

    >>> found = calibrate(["conv2d"], np.array([[4.0], [2.0], [1.0]]), np.array([4.9, 2.7, 1.6]))
    >>> round(found.overhead, 2), round(found.factors["conv2d"], 2)
    (0.5, 1.1)
    """
    noise = _NOISE
    for _ in range(_ROUNDS):
        fitted = _fit(operators, network, noise)
        predicted = fitted[0] + operators @ fitted[1:]
        residuals = np.log(predicted / network)[1:]
        error = float(np.clip(np.sqrt(np.mean(residuals**2)), _NOISE, _PRIOR)) if len(residuals) else _NOISE
        if abs(error - noise) < _SETTLED * noise:
            break
        noise = error
    factors = dict(zip(kinds, fitted[1:].tolist(), strict=True))
    runs = sorted(zip(predicted.tolist(), network.tolist(), strict=True))
    return Calibration(float(fitted[0]), factors, tuple(runs))


def _fit(operators: FloatArray, network: FloatArray, noise: float) -> FloatArray:
    """Fit overhead and factors, if the times of the network have a given error, as a share."""
    count = operators.shape[1]
    errors = np.array([_NOISE_OF_WHOLE, *[noise] * (len(network) - 1)])
    runs = np.column_stack([np.ones(len(network)), operators]) / (errors * network)[:, None]
    prior = np.column_stack([np.zeros(count), np.eye(count)]) / _PRIOR
    lowest = np.array([0.0, *[_LEAST_FACTOR] * count])
    left = np.concatenate([runs, prior])
    right = np.concatenate([1 / errors, np.full(count, 1 / _PRIOR)])
    return np.asarray(lsq_linear(left, right, (lowest, np.full(count + 1, np.inf))).x, dtype=np.float64)
