"""Building a latency table: measure the operators of a network one by one, then the whole network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.utils._pytree import tree_leaves

from secateur.devices import device_of
from secateur.graph import ChannelGraph, ExampleInputs
from secateur.graph.capture import capture
from secateur.graph.groups import IntArray
from secateur.heap import kept_where_allowed
from secateur.latency.calibration import calibrate
from secateur.latency.ladder import Clock, Ladder
from secateur.latency.operators import Operator, find_operators
from secateur.latency.runtimes import Runtime, find_runtime
from secateur.latency.stopwatch import OperatorStopwatch, Stopwatch
from secateur.latency.surface import FloatArray, Surface, measure_surface
from secateur.latency.table import LatencyTable
from secateur.latency.term import Term
from secateur.latency.timings import Timings

Progress = Callable[[int, int], None]
"""Told how many steps of how many are done."""

_NEGLIGIBLE = 5e-4  # share of a network's time that one place of it may be wrong by
_LEAST = 1e-6  # milliseconds; no operator takes less


@kept_where_allowed()
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
        >>> x = torch.randn(1, 3, 12, 12)
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
        terms.append(Term(item.name, item.kind, item.modules, surface, item.constants, item.slots))
        tell()
    batch = next((leaf.shape[0] for leaf in tree_leaves(example_inputs) if getattr(leaf, "ndim", 0)), 1)
    conditions = bench.stopwatch.conditions
    ladder = Ladder(model, graph, example_inputs, operators, chosen)
    network = ladder.times(bench.timings, conditions, clock)
    tell()
    calibration = calibrate(*_by_kind(terms, ladder.widths), network)
    return LatencyTable(tuple(terms), calibration, int(batch), conditions, chosen.name)


def _by_kind(terms: Sequence[Term], widths: IntArray) -> tuple[list[str], FloatArray]:
    """Kinds of operators, and the time of each at each width, shape ``(widths, kinds)``."""
    sums: dict[str, FloatArray] = {}
    for term in terms:
        sums[term.kind] = sums.get(term.kind, 0.0) + term.milliseconds(widths).sum(-1)
    return list(sums), np.stack(list(sums.values()), axis=-1) if sums else np.zeros((len(widths), 0))


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

    def again(self, item: Operator, sizes: Sequence[int]) -> float:
        """Milliseconds of an operator, measured once more."""
        call = item.call(sizes)
        return self.known(f"{call}, again", lambda: self.stopwatch(call))

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
            return measure_surface(
                item.axes,
                lambda sizes: self.time(item, sizes),
                negligible,
                lambda sizes: self.again(item, sizes),
            )
        except (RuntimeError, ValueError, IndexError, TypeError):
            full = self.time(item, item.full)
            return measure_surface(
                item.axes,
                lambda sizes: full * float(np.prod([s / f for s, f in zip(sizes, item.full, strict=True)])),
                negligible,
            )
