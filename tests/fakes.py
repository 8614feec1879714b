"""Made-up channel graphs, wilder than any network, whose costs are counted tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

import numpy as np
from hypothesis import strategies as st

from secateur.errors import UsageError
from secateur.graph.costs import Cost, CostModel, CostModelBuilder
from secateur.graph.groups import Group, Member, Role
from secateur.plan import PruningPlan


@dataclass(frozen=True)
class Layer:
    """A weight of (outputs, inputs) that is used at some positions.

    ``reads`` lists (group, slots per channel); ``constant`` inputs belong to no group.
    """

    writes: int
    reads: tuple[tuple[int, int], ...]
    constant: int
    positions: int


@dataclass(frozen=True, eq=False)
class FakeGraph:
    """A graph of layers between groups; layer ``l3`` writes a group through ``l3.weight`` dimension 0.

    The positions of several groups lie shuffled along the dimension that reads them.
    """

    widths: tuple[int, ...]
    frozen: frozenset[int]
    layers: tuple[Layer, ...]
    seed: int = 0

    @property
    def present(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.zeros(0, dtype=np.int64)

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for number, layer in enumerate(self.layers):
            fan_in = layer.constant + sum(self.widths[group] * slots for group, slots in layer.reads)
            shapes[f"l{number}.weight"] = (self.widths[layer.writes], fan_in)
            shapes[f"l{number}.bias"] = (self.widths[layer.writes],)
        return shapes

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        members: list[list[Member]] = [[] for _ in self.widths]
        rng = np.random.default_rng(self.seed)
        for number, layer in enumerate(self.layers):
            own = np.arange(self.widths[layer.writes])[:, None]
            members[layer.writes].append(Member(f"l{number}.weight", 0, Role.PRODUCER, own))
            members[layer.writes].append(Member(f"l{number}.bias", 0, Role.CARRIER, own))
            places = rng.permutation(self.tensors[f"l{number}.weight"][1])
            for group, slots in layer.reads:
                mine, places = np.split(places, [self.widths[group] * slots])
                shaped = mine.reshape(self.widths[group], slots)
                members[group].append(Member(f"l{number}.weight", 1, Role.CONSUMER, shaped))
        return tuple(
            Group(f"g{number}", tuple(found), "is made up" if number in self.frozen else None)
            for number, found in enumerate(members)
        )

    @property
    def branches(self) -> tuple[()]:
        return ()

    @property
    def prunable(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.prunable)

    def __contains__(self, name: object) -> bool:
        return any(group.name == name for group in self.groups)

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise UsageError(f"no channel group '{name}'")

    @cached_property
    def cost_model(self) -> CostModel:
        builder = CostModelBuilder(len(self.widths))
        points = []
        for layer in self.layers:
            fan_in = builder.extent(layer.constant, dict(_merged(layer.reads)))
            fan_out = builder.extent(0, {layer.writes: 1})
            for add, factor in ((builder.params, 1), (builder.bytes, 4)):
                add(factor, [fan_in, fan_out])
                add(factor, [fan_out])
            builder.macs(layer.positions, [fan_in, fan_out])
            points.append([builder.value(4 * layer.positions, [size]) for size in (fan_in, fan_out)])
        builder.live(points)
        return builder.build()

    @property
    def wiring(self) -> SimpleNamespace:
        return SimpleNamespace(branches=(), cost_model=self.cost_model)

    def cost(self, keep: Mapping[str, int] | None = None) -> Cost:
        widths = [(keep or {}).get(group.name, group.channels) for group in self.groups]
        return self.cost_model.cost(np.array(widths, dtype=np.int64))

    def counted(self, plan: PruningPlan) -> Cost:
        """The cost of what a plan leaves, counted from the shapes of the cut tensors."""
        shapes = {name: list(shape) for name, shape in self.tensors.items()}
        for (tensor, dim), kept in plan.kept_slots.items():
            shapes[tensor][dim] = len(np.arange(shapes[tensor][dim])[kept])
        params = sum(math.prod(shape) for shape in shapes.values())
        weights = [shapes[f"l{number}.weight"] for number in range(len(self.layers))]
        pairs = list(zip(self.layers, weights, strict=True))
        return Cost(
            params=params,
            macs=sum(layer.positions * math.prod(shape) for layer, shape in pairs),
            bytes=4 * params,
            memory=max(4 * layer.positions * sum(shape) for layer, shape in pairs),
        )


def _merged(reads: tuple[tuple[int, int], ...]) -> dict[int, int]:
    total: dict[int, int] = {}
    for group, slots in reads:
        total[group] = total.get(group, 0) + slots
    return total


@st.composite
def graphs(draw: st.DrawFn, max_width: int = 12, frozen: bool = True) -> FakeGraph:
    """Small graphs: every group is written once or more, and read anywhere, or nowhere."""
    widths = draw(st.lists(st.integers(1, max_width), min_size=1, max_size=5))
    indices = st.integers(0, len(widths) - 1)
    reads = st.lists(st.tuples(indices, st.integers(1, 3)), max_size=2, unique_by=lambda read: read[0])
    layers = [
        Layer(writes, tuple(draw(reads)), draw(st.integers(1, 4)), draw(st.integers(1, 30)))
        for writes in [*range(len(widths)), *draw(st.lists(indices, max_size=2))]
    ]
    held = draw(st.frozensets(indices, max_size=2)) if frozen else frozenset()
    return FakeGraph(tuple(widths), held, tuple(layers), draw(st.integers(0, 99)))


def chain(*widths: int, frozen: frozenset[int] = frozenset(), positions: int = 1) -> FakeGraph:
    """Layers one after another, each reading the group before it; the first reads three constants."""
    layers = [Layer(0, (), 3, positions)]
    layers += [Layer(number, ((number - 1, 1),), 0, positions) for number in range(1, len(widths))]
    return FakeGraph(widths, frozen, tuple(layers))
