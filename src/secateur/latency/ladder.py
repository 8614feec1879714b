"""The ladder: a whole network at several widths, which calibrates the times of its operators."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import nn

from secateur.graph import ChannelGraph, ExampleInputs
from secateur.graph.channel_graph import Keep
from secateur.graph.cutting import by_tensor, copy_with, cut_tensor, named_tensors, positions_left
from secateur.graph.groups import IntArray
from secateur.latency.measure import compare_latency
from secateur.latency.operators import Operator
from secateur.latency.runtimes import Runtime
from secateur.latency.timings import Timings

Clock = Callable[[Mapping[str, nn.Module], ExampleInputs], Mapping[str, float]]
"""Median milliseconds of whole networks, by name."""

_RUNGS = 9
_NARROWEST = 0.1  # share of all widths
_UNEVEN = (
    0.5  # by how much the widths of single groups differ from their rung, so that kinds can be told apart
)
_RUNS, _SECONDS = 3, 0.4  # at least, for each rung


@dataclass(frozen=True)
class Ladder:
    """The whole network at several widths.

    Attributes:
        model: the network.
        graph: its channel graph.
        inputs: what to call it with.
        operators: what it is made of.
        runtime: how it is run.
    """

    model: nn.Module
    graph: ChannelGraph
    inputs: ExampleInputs
    operators: Sequence[Operator]
    runtime: Runtime

    @cached_property
    def widths(self) -> IntArray:
        """Widths of all groups, shape ``(rungs, groups)``: as they are, then smaller and smaller shares."""
        rng = np.random.default_rng(0)
        full = self.graph.widths
        shares = np.linspace(1.0, _NARROWEST, _RUNGS)[:, None]
        uneven = rng.uniform(1 - _UNEVEN, 1 + _UNEVEN, (_RUNGS, len(full)))
        cut = np.round(full * shares * uneven).astype(np.int64).clip(1, full)
        cut[0] = full
        prunable = np.array([group.prunable for group in self.graph.groups], dtype=bool)
        return np.where(prunable, cut, full)

    def times(self, timings: Timings, conditions: str, clock: Clock | None) -> npt.NDArray[np.float64]:
        """Milliseconds of each rung, shape ``(rungs,)``.

        Each runs in turn with the whole network, just as plans do later, and with no third: more networks
        would drive each other's weights out of the caches.

        Args:
            timings: what is known already; what is not is added.
            conditions: under which times hold.
            clock: runs networks; on this device if not given.
        """
        names = [self._name(widths) for widths in self.widths]
        for name, widths in zip(names, self.widths, strict=True):
            if timings.get(conditions, name) is None:
                found = (clock or self._clock)({"whole": self.model, "rung": self._cut(widths)}, self.inputs)
                whole = timings.get(conditions, names[0])
                # The machine may be slower now than when the whole network was measured first.
                times = 1.0 if whole is None else whole / found["whole"]
                timings.put(conditions, name, found["rung"] * times)
        return np.array([timings.get(conditions, name) for name in names])

    def _clock(self, models: Mapping[str, nn.Module], inputs: ExampleInputs) -> Mapping[str, float]:
        found = compare_latency(
            models, inputs, runtime=self.runtime, warmup=2, min_runs=_RUNS, min_seconds=_SECONDS
        )
        whole = found.latencies["whole"].median_ms
        return {name: whole / found.speedup(name) for name in models}

    def _name(self, widths: IntArray) -> str:
        """A network's name among the timings: what it is made of, at some widths."""
        calls: Counter[str] = Counter()
        for item in self.operators:
            sizes = np.einsum("g,pag->pa", widths, item.slots) + item.constants
            calls.update(str(item.call(place.tolist())) for place in sizes)
        text = "\n".join(f"{count} {call}" for call, count in sorted(calls.items()))
        return f"network {hashlib.sha256(text.encode()).hexdigest()[:24]}, {self.runtime.name}"

    def _cut(self, widths: IntArray) -> nn.Module:
        """A copy of the network with groups of some widths."""
        if np.array_equal(widths, self.graph.widths):
            return self.model
        plan = Keep({g.name: range(w) for g, w in zip(self.graph.groups, widths.tolist(), strict=True)})
        cuts = by_tensor(positions_left(self.graph, self.graph.after(plan)))
        named = named_tensors(self.model)
        tensors = {name: cut_tensor(named[name], kept) for name, kept in cuts.items()}
        return copy_with(self.model, tensors, self.graph.attributes_after(plan))
