"""Building a latency table: measure the operators of a network one by one, then the whole network."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.utils._pytree import tree_leaves

from secateur.graph import ChannelGraph, ExampleInputs
from secateur.graph.capture import capture
from secateur.graph.cutting import by_tensor, copy_with, cut_tensor, named_tensors, positions_left
from secateur.graph.groups import IntArray
from secateur.latency.measure import compare_latency, device_of
from secateur.latency.operators import Operator, find_operators
from secateur.latency.runtimes import Runtime, find_runtime
from secateur.latency.stopwatch import OperatorStopwatch, Stopwatch
from secateur.latency.surface import Surface, measure_surface
from secateur.latency.table import LatencyTable
from secateur.latency.term import Term
from secateur.latency.timings import Timings

Progress = Callable[[int, int], None]
"""Told how many steps of how many are done."""

Clock = Callable[[Mapping[str, nn.Module], ExampleInputs], Mapping[str, float]]
"""Median milliseconds of whole networks, by name."""

_LADDER = (1.0, 0.75, 0.5, 0.3, 0.15, 0.07)  # shares of all widths at which the whole network runs
_UNEVEN = 0.4  # by how much the widths of single groups differ from that, so that steps even out
_NEGLIGIBLE = 5e-4  # share of a network's time that one place of it may be wrong by
_LEAST = 1e-6  # milliseconds; no operator takes less


def latency_table(
    model: nn.Module,
    graph: ChannelGraph,
    example_inputs: ExampleInputs,
    *,
    runtime: str | Runtime = "eager",
    timings: Timings | None = None,
    stopwatch: Stopwatch | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measures how long a network takes on this device, as a function of the widths of its groups.

    Every operator is timed by itself at enough sizes to see the steps that devices make; then the whole
    network runs at several widths, which says how far the sum of its operators is off. Everything
    measured is kept in ``timings`` at once, so that an interrupted call goes on where it stopped, and the
    next plan, or another network with the same operators, measures nothing twice.

    Args:
        model: the network that was traced, on the device that counts; left as it is.
        graph: its channel graph.
        example_inputs: what to call it with; the number of examples is that for which times hold.
        runtime: how the whole network is run, as for :func:`secateur.measure_latency`. Operators are
            timed one by one in any case, in the memory layout of ``"channels-last"`` if that is asked for.
        timings: what was measured before; a file of this user's if not given.
        stopwatch: times operators; this device by default.
        clock: times whole networks; this device by default.
        progress: called after each step.

    Returns:
        The table; :func:`secateur.make_plan` takes it as ``latency``.

    Raises:
        UsageError: for these inputs, the forward pass is not the one that was traced.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> x = torch.zeros(1, 3, 12, 12)
        >>> graph = trace(net, x)
        >>> table = latency_table(net, graph, x, timings=Timings())
        >>> table.milliseconds(graph.widths) > 0, table.batch
        (np.True_, 1)
    """
    chosen = find_runtime(runtime)
    layout = chosen.name if chosen.name == "channels-last" else "eager"
    bench = _Bench(
        Timings.at_home() if timings is None else timings,
        stopwatch or OperatorStopwatch(device_of(model), layout),
    )
    operators = find_operators(graph, capture(model, example_inputs))
    steps, done = 2 * len(operators) + 1, 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps)

    full = {}
    for item in operators:
        full[item] = bench.time(item, item.full)
        tell()
    negligible = _NEGLIGIBLE * sum(full[item] * len(item.modules) for item in operators)
    terms = []
    for item in operators:
        surface = bench.surface(item, negligible / len(item.modules))
        terms.append(Term(item.name, item.modules, surface, item.constants, item.slots))
        tell()
    batch = next((leaf.shape[0] for leaf in tree_leaves(example_inputs) if getattr(leaf, "ndim", 0)), 1)
    table = LatencyTable(tuple(terms), (), int(batch), bench.stopwatch.conditions, chosen.name)
    calibration = _Calibration(model, graph, example_inputs, operators, clock or _clock(chosen))
    seen = calibration.seen(table, bench)
    tell()
    return LatencyTable(table.terms, seen, table.batch, table.conditions, table.runtime)


def _clock(runtime: Runtime) -> Clock:
    """Runs networks in turn on this device."""

    def clock(models: Mapping[str, nn.Module], inputs: ExampleInputs) -> Mapping[str, float]:
        found = compare_latency(models, inputs, runtime=runtime, warmup=2, min_runs=5)
        return {name: latency.median_ms for name, latency in found.latencies.items()}

    return clock


@dataclass(frozen=True)
class _Bench:
    """Times operators, each with the same sizes once.

    Attributes:
        timings: what is known already.
        stopwatch: finds out the rest.
    """

    timings: Timings
    stopwatch: Stopwatch

    def time(self, item: Operator, sizes: Sequence[int]) -> float:
        """Milliseconds of an operator."""
        call = item.call(sizes)
        return self.known(str(call), lambda: self.stopwatch(call))

    def known(self, what: str, measure: Callable[[], float]) -> float:
        """Milliseconds that are known, or measured and kept."""
        found = self.timings.get(self.stopwatch.conditions, what)
        if found is None:
            found = max(_LEAST, measure())
            self.timings.put(self.stopwatch.conditions, what, found)
        return found

    def surface(self, item: Operator, negligible: float) -> Surface:
        """Milliseconds of an operator as a function of its sizes.

        An operator that refuses smaller sizes, because its other arguments are made for one, is taken to
        need as much time as it has numbers to work on.
        """
        try:
            return measure_surface(item.axes, lambda sizes: self.time(item, sizes), negligible)
        except (RuntimeError, ValueError, IndexError, TypeError):
            full = self.time(item, item.full)
            return measure_surface(
                item.axes,
                lambda sizes: full * float(np.prod([s / f for s, f in zip(sizes, item.full, strict=True)])),
                negligible,
            )


@dataclass(frozen=True)
class _Keep:
    """A plan in its barest form."""

    keep: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class _Calibration:
    """The whole network at several widths.

    Attributes:
        model: the network.
        graph: its channel graph.
        inputs: what to call it with.
        operators: what it is made of.
        clock: times it.
    """

    model: nn.Module
    graph: ChannelGraph
    inputs: ExampleInputs
    operators: Sequence[Operator]
    clock: Clock

    def seen(self, table: LatencyTable, bench: _Bench) -> tuple[tuple[float, float], ...]:
        """Sums of operators and times of the network, ascending, without what tells nothing new."""
        rungs = {self._name(widths, table.runtime): widths for widths in self._ladder()}
        conditions = bench.stopwatch.conditions
        if any(bench.timings.get(conditions, name) is None for name in rungs):
            models = {name: self._cut(widths) for name, widths in rungs.items()}
            for name, milliseconds in self.clock(models, self.inputs).items():
                bench.timings.put(conditions, name, milliseconds)
        sums = table.operators(np.stack(list(rungs.values()))).tolist()
        seen = {
            one: bench.timings.get(conditions, name) or 0.0 for one, name in zip(sums, rungs, strict=True)
        }
        return tuple(sorted(seen.items()))

    def _ladder(self) -> list[IntArray]:
        """Widths that all shrink about alike; frozen groups stay."""
        rng = np.random.default_rng(0)
        open_ = np.array([group.prunable for group in self.graph.groups], dtype=bool)
        ladder = []
        for share in _LADDER:
            uneven = rng.uniform(1 - _UNEVEN, 1 + _UNEVEN, len(open_)) if share < 1 else 1.0
            widths = np.round(self.graph.widths * share * uneven).astype(np.int64)
            ladder.append(np.where(open_, widths.clip(1, self.graph.widths), self.graph.widths))
        return ladder

    def _name(self, widths: IntArray, runtime: str) -> str:
        """A network's name among the timings: what it is made of, at some widths."""
        calls: Counter[str] = Counter()
        for item in self.operators:
            sizes = np.einsum("g,pag->pa", widths, item.slots) + item.constants
            calls.update(str(item.call(place.tolist())) for place in sizes)
        text = "\n".join(f"{count} {call}" for call, count in sorted(calls.items()))
        return f"network {hashlib.sha256(text.encode()).hexdigest()[:24]}, {runtime}"

    def _cut(self, widths: IntArray) -> nn.Module:
        """A copy of the network with groups of some widths."""
        if np.array_equal(widths, self.graph.widths):
            return self.model
        plan = _Keep({g.name: range(w) for g, w in zip(self.graph.groups, widths.tolist(), strict=True)})
        cuts = by_tensor(positions_left(self.graph, self.graph.after(plan)))
        named = named_tensors(self.model)
        tensors = {name: cut_tensor(named[name], kept) for name, kept in cuts.items()}
        return copy_with(self.model, tensors, self.graph.attributes_after(plan))
