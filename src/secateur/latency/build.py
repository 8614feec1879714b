"""Build a latency table: time the operators of a network, then the whole network at several widths.

The operators are timed one by one. Calling them takes time that none of these times includes, and what an
operator leaves in the caches makes the next faster or slower. So the whole network runs at several widths
too, and its times are explained by least squares:

    time of the network = overhead + calls * time per call
                          + sum over kinds of factor * time of the operators of that kind

Calls with a size that is not a whole number of vectors have another factor than the others of their kind.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear
from torch import nn

from secateur.devices import device_of
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, ExampleInputs, trace
from secateur.graph.capture.program import capture
from secateur.graph.channel_graph import Keep
from secateur.graph.cutting.tensors import by_tensor, copy_with, cut_tensor, named_tensors, positions_left
from secateur.graph.groups import FloatArray, IntArray
from secateur.latency.measure import Comparison, batch_size, compare_latency
from secateur.latency.operator_timer import DeviceTimer, OperatorTimer, Timings
from secateur.latency.operators import Operator, find_operators, same_operators
from secateur.latency.piecewise_linear import OperatorTime, measure_operator_time, whole_vectors
from secateur.latency.pytorch_runtimes import PyTorchRuntime, find_runtime
from secateur.latency.table import Calibration, LatencyTable, TableEntry, is_present

NetworkTimer = Callable[[Mapping[str, nn.Module], ExampleInputs], Comparison]
"""Measures whole networks, by name, alternately; the first is the reference."""

OperatorMilliseconds = Callable[..., float]
"""Returns the time of an operator with axes of given sizes; the second of two with ``again=True``."""

Progress = Callable[[int, int], None]
"""Called with the number of finished steps, and of all steps."""

_NEGLIGIBLE = 5e-4  # accepted error at one place of a network, as a share of the network's time
_LEAST_MS = 1e-6  # milliseconds; no operator takes less

_RUNS, _EVEN_RUNS = 8, 4  # networks of any widths that run, and of widths that are whole vectors
_WIDEST, _NARROWEST = 0.95, 0.1  # share of all widths in the first and the last of them
_SPREAD = 0.5  # variation of the widths of groups around their share
_ABSENT = 0.4  # share of the residual branches that every second network lacks
_MIN_RUNS, _MIN_SECONDS = 3, 0.4  # for each of them

_NOISE = 0.02  # least error that is assumed for a time of the network, as a share
_NOISE_OF_WHOLE = 0.005  # the same at full width, to which all shares refer
_SETTLED = 0.05  # relative change of the estimated error at which iterating stops
_ROUNDS = 20  # most iterations; the error settles in a few
_PRIOR = 0.3  # expected deviation of a factor from 1, and the largest error of a time of the network
_LEAST_FACTOR = 0.05
_PER_CALL = 0.005  # expected deviation of the time per call from 0, milliseconds


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
        UsageError: for these inputs, the forward pass is not the one that was traced, and it has other
            channels.

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
    operators = _operators(model, graph, example_inputs)
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

    def compare(plan: Keep) -> Comparison:
        models = {"full": model, "narrow": _narrowed(model, graph, plan)}
        if network_timer is not None:
            return network_timer(models, example_inputs)
        return compare_latency(
            models, example_inputs, runtime=chosen, warmup=2, min_runs=_MIN_RUNS, min_seconds=_MIN_SECONDS
        )

    plans = _calibration_plans(graph)
    left = [graph.after(plan) for plan in plans]
    units = np.array([np.append(smaller.widths, smaller.present) for smaller in left])
    names = [_network_name(operators, row, chosen) for row in units]
    network = _calibration_runs(names, plans, compare, timings, timer.conditions)
    finish_step()
    calibration = calibrate(_times_by_kind(entries, units), network)
    return LatencyTable(
        tuple(entries), calibration, batch_size(example_inputs), timer.conditions, chosen.name
    )


def _operators(model: nn.Module, graph: ChannelGraph, example_inputs: ExampleInputs) -> tuple[Operator, ...]:
    """Find the operators of the timed forward pass, as functions of the widths of a graph.

    For other inputs the network may run other operators, as a decoder does for one token with a cache. It is
    traced with them, which must find the same channels.
    """
    program = capture(model, example_inputs)
    if same_operators(program, graph.wiring.program):
        return find_operators(graph, program)
    units = {item.module: item.unit for item in graph.attentions}
    timed = trace(model, example_inputs, attention=units)
    channels = [[(group.name, group.channels) for group in each.groups] for each in (graph, timed)]
    branches = [[branch.name for branch in each.branches] for each in (graph, timed)]
    pairs = zip(graph.groups, timed.groups, strict=False)
    fixed = any(one.prunable and not other.prunable for one, other in pairs)
    if channels[0] != channels[1] or branches[0] != branches[1] or fixed:
        raise UsageError(
            "with these inputs the network runs other operators than when it was traced, and has other "
            "prunable channels; trace it with inputs of this shape"
        )
    return find_operators(timed, program)


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


def _calibration_plans(graph: ChannelGraph) -> list[Keep]:
    """Choose what is left of the network in each run: first all, then decreasing shares of the channels.

    Groups vary around the share of a run, so that kinds of operators can be told apart. Few of them keep
    all their channels: a wide network of uneven widths differs from a full one, and from a narrow one. In
    the last runs all widths are whole vectors, as far as a group has so many channels. Every second network
    lacks some residual branches.
    """
    rng = np.random.default_rng(0)
    full = graph.widths
    shares = np.concatenate([np.linspace(_WIDEST, _NARROWEST, count) for count in (_RUNS, _EVEN_RUNS)])
    spread = np.minimum(_SPREAD * shares, 1 - shares)[:, None] * rng.uniform(-1, 1, (len(shares), len(full)))
    wanted = full * (shares[:, None] + spread)
    widths = np.concatenate([np.round(wanted[:_RUNS]).astype(np.int64), whole_vectors(wanted[_RUNS:])])
    plans = [Keep({})]
    least = [group.min_channels for group in graph.groups]
    for run, row in enumerate(widths.clip(least, full).tolist()):
        keep = {
            group.name: range(width) for group, width in zip(graph.groups, row, strict=True) if group.prunable
        }
        absent = [
            branch.name for branch in graph.branches if branch.prunable and rng.random() < _ABSENT * (run % 2)
        ]
        plans.append(Keep(keep, absent))
    return plans


def _calibration_runs(
    names: Sequence[str],
    plans: Sequence[Keep],
    compare: Callable[[Keep], Comparison],
    timings: Timings,
    conditions: str,
) -> FloatArray:
    """Measure the network at several widths.

    Each runs alternately with the full network, as a pruned network does later. If more networks alternated,
    they would displace each other's weights from the caches. The first plan leaves all of the network;
    ``compare`` measures ``"narrow"`` alternately with ``"full"``. Returns milliseconds, shape ``(runs,)``.
    """
    for name, plan in zip(names, plans, strict=True):
        if timings.get(conditions, name) is None:
            found = compare(plan)
            full = found.latencies["full"].median_ms
            # The machine may be slower now than during the first measurement of the full network.
            drift = timings.get(conditions, names[0])
            times = 1.0 if drift is None else drift / full
            timings.put(conditions, name, full / found.speedup("narrow") * times)
    return np.array([timings.get(conditions, name) for name in names], dtype=np.float64)


def _network_name(operators: Sequence[Operator], units: IntArray, runtime: PyTorchRuntime) -> str:
    """Name a network by the operators that it runs, and its runtime."""
    calls: Counter[str] = Counter()
    for item in operators:
        groups = item.slots.shape[-1]
        sizes = np.einsum("g,pag->pa", units[:groups], item.slots) + item.constants
        there = is_present(units[groups:], item.branches)
        calls.update(str(item.call(place)) for place in sizes[there].tolist())
    text = "\n".join(f"{count} {call}" for call, count in sorted(calls.items()))
    return f"network {hashlib.sha256(text.encode()).hexdigest()[:24]}, {runtime.name}"


def _narrowed(model: nn.Module, graph: ChannelGraph, plan: Keep) -> nn.Module:
    """Return a copy of the network that a plan leaves; the network itself if the plan removes nothing."""
    smaller = graph.after(plan)
    if np.array_equal(smaller.units, graph.units):
        return model
    named = named_tensors(model)
    cuts = by_tensor(positions_left(graph, smaller))
    tensors = {name: cut_tensor(named[name], kept) for name, kept in cuts.items()}
    return copy_with(model, tensors, graph.attributes_after(plan), replacements=smaller.replacements)


@dataclass(frozen=True)
class KindTimes:
    """Times of operators that were timed alone, added up by kind, at several widths of a network.

    Attributes:
        kinds: of operators.
        milliseconds: of all calls of each kind, shape ``(widths, kinds)``; the full network first.
        uneven: of those in which a size is not a whole number of vectors, same shape.
        calls: number of calls of all kinds, shape ``(widths,)``.
    """

    kinds: tuple[str, ...]
    milliseconds: FloatArray
    uneven: FloatArray
    calls: IntArray


def _times_by_kind(entries: Sequence[TableEntry], units: IntArray) -> KindTimes:
    """Add up the times of operators for widths and present branches, ``(widths, groups + branches)``."""
    kinds = tuple(dict.fromkeys(entry.kind for entry in entries))
    times, uneven = np.zeros((2, len(units), len(kinds)))
    calls = np.zeros(len(units), dtype=np.int64)
    for entry in entries:
        widths, branches = np.split(units, [entry.slots.shape[-1]], axis=-1)
        there = is_present(branches, entry.inside)
        column, milliseconds = kinds.index(entry.kind), entry.milliseconds(widths) * there
        times[:, column] += milliseconds.sum(-1)
        uneven[:, column] += (milliseconds * entry.uneven(widths)).sum(-1)
        calls += there.sum(-1)
    return KindTimes(kinds, times, uneven, calls)


def calibrate(operators: KindTimes, network: FloatArray) -> Calibration:
    """Fit an overhead, a time per call and two factors for each kind of operator to times of the network.

    Factors are shrunk toward 1, the two of a kind toward each other, and the time per call toward 0 (ridge
    regression); the shrinkage is stronger when the calibration runs are less informative, that is, when the
    fit leaves a larger error. Without shrinkage, noise would make some operators look cheap and bias plans
    toward them. The shrinkage is limited: otherwise, on a busy machine, which delays long runs but not short
    ones, nearly all of the network's time would be attributed to the overhead, which no cut lowers.

    Args:
        operators: times of the operators, each timed alone.
        network: time of the network at each width, milliseconds, shape ``(widths,)``.

    Returns:
        Overhead, time per call and factors; only the time per call may be negative.

    >>> alone = np.array([[4.0], [2.0], [1.0]])
    >>> times = KindTimes(("conv2d",), alone, np.zeros((3, 1)), np.ones(3, dtype=int))
    >>> found = calibrate(times, np.array([4.9, 2.7, 1.6]))
    >>> round(found.overhead, 2), round(found.factors["conv2d"], 2)
    (0.5, 1.1)
    """
    even = operators.milliseconds - operators.uneven
    columns = np.column_stack([np.ones(len(network)), operators.calls, even, operators.uneven])
    noise = _NOISE
    for _ in range(_ROUNDS):
        fitted = _fit(columns, network, noise)
        predicted = columns @ fitted
        residuals = np.log(np.maximum(predicted, _LEAST_MS) / network)[1:]
        error = float(np.clip(np.sqrt(np.mean(residuals**2)), _NOISE, _PRIOR)) if len(residuals) else _NOISE
        if abs(error - noise) < _SETTLED * noise:
            break
        noise = error
    (overhead, per_call), factors = fitted[:2].tolist(), fitted[2:].reshape(2, -1).tolist()
    by_kind = [dict(zip(operators.kinds, values, strict=True)) for values in factors]
    runs = sorted(zip(predicted.tolist(), network.tolist(), strict=True))
    return Calibration(overhead, per_call, by_kind[0], by_kind[1], tuple(runs))


def _fit(columns: FloatArray, network: FloatArray, noise: float) -> FloatArray:
    """Fit overhead, time per call and factors, if the times of the network have a given error, as a share."""
    kinds = columns.shape[1] // 2 - 1
    errors = np.array([_NOISE_OF_WHOLE, *[noise] * (len(network) - 1)])
    one, none = np.eye(kinds) / _PRIOR, np.zeros((kinds, kinds))
    expected = np.zeros((2 * kinds + 1, columns.shape[1]))
    expected[0, 1] = 1 / _PER_CALL
    expected[1:, 2:] = np.block([[one, none], [-one, one]])
    left = np.concatenate([columns / (errors * network)[:, None], expected])
    right = np.concatenate([1 / errors, [0.0], np.full(kinds, 1 / _PRIOR), np.zeros(kinds)])
    lowest = np.array([0.0, -_PER_CALL, *[_LEAST_FACTOR] * 2 * kinds])
    return np.asarray(lsq_linear(left, right, (lowest, np.full(len(lowest), np.inf))).x, dtype=np.float64)
