"""Build a cost model from a walked program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from secateur.graph.capture.program import Origin, Program
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.costs import CostModel, CostModelBuilder
from secateur.graph.groups import IntArray
from secateur.graph.labels import SlotTable, Value
from secateur.graph.propagation.findings import Findings, OperatorMacs
from secateur.graph.propagation.propagate import Environment
from secateur.graph.wiring import Channels

_SAME_MEMORY = {"dropout", "alpha_dropout", "feature_dropout"}
"""Operators that return their argument in evaluation mode, though their signature does not say so."""

_WITH_INDICES = {"max_pool2d", "max_pool3d"}
"""Operators that write a 64-bit index beside every result, and drop it again."""


def label_vectors(env: Environment, findings: Findings) -> list[IntArray]:
    """List the label vectors that costs depend on, each once."""
    vectors = {labels.tobytes(): labels for item in findings.work for labels in item.extents}
    for found in env.values():
        for value in _values(found):
            for labels in value.labels:
                if labels is not None:
                    vectors.setdefault(labels.tobytes(), labels)
    return list(vectors.values())


class Costing:
    """Write the costs of one program as polynomials of group widths.

    Args:
        channels: the channels of the network.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._sizes = np.array([group.channels for group in channels.groups], dtype=np.int64)
        self._builder = CostModelBuilder(len(channels.groups))
        self._known: dict[tuple[bytes, int], int] = {}

    def tensors(self, slots: SlotTable, parameters: frozenset[str], item_sizes: Mapping[str, int]) -> None:
        """Count the elements and bytes of all parameters and buffers."""
        for name, item_size in item_sizes.items():
            extents = [self._extent(labels) for labels in slots.tensor(name).labels if labels is not None]
            if name in parameters:
                self._builder.params(1, extents)
            self._builder.bytes(item_size, extents)

    def add_macs(self, findings: Findings, batch: int) -> None:
        """Count multiply-accumulates, for one example."""
        for item in findings.work:
            share, divisors = _of_one_example(item, batch)
            pairs = zip(item.extents, divisors, strict=True)
            self._builder.macs(share, [self._extent(labels, divisor) for labels, divisor in pairs])

    def activations(self, program: Program, env: Environment) -> None:
        """Count the bytes of values, and when each is alive.

        The caller holds the inputs throughout, and code that calls a module holds the arguments until the
        module returns.
        """
        nodes = list(program.graph.nodes)
        base = _memory_owners(program, nodes)
        last = {node: len(nodes) - 1 for node in nodes if node.op == "placeholder"}
        returns = _returns(nodes)
        for step, node in enumerate(nodes):
            for source in node.all_input_nodes:
                if source in base:
                    entered = _modules(node).keys() - _modules(source).keys()
                    held = max([step, *(returns[step][call] for call in entered)])
                    last[base[source]] = max(last.get(base[source], 0), held)
        live: list[list[int]] = [[] for _ in nodes]
        for step, node in enumerate(nodes):
            if base.get(node) != node:
                continue
            for number in self._value(node, env[node]):
                for point in range(step, last.get(node, step) + 1):
                    live[point].append(number)
            if _operator(node) in _WITH_INDICES:
                live[step] += self._value(node, env[node], torch.int64.itemsize)
        self._builder.live([point for point in live if point])

    def build(self) -> CostModel:
        """The finished model."""
        return self._builder.build()

    def _value(self, node: Node, found: Any, item_size: int | None = None) -> list[int]:
        """Declare the results of an operator, with another size of their numbers if one is given."""
        results = node.meta.get("val")
        listed = results if isinstance(results, Sequence) else [results]
        numbers = []
        for value, result in zip(_values(found), listed, strict=False):
            if isinstance(result, Tensor):
                extents = [
                    self._builder.extent(size, {}) if labels is None else self._extent(labels)
                    for size, labels in zip(value.shape, value.labels, strict=True)
                ]
                numbers.append(self._builder.value(item_size or result.element_size(), extents))
        return numbers

    def _extent(self, labels: IntArray, divisor: int = 1) -> int:
        """The size of a labelled dimension, or an exact share of it: a constant plus multiples of widths."""
        key = labels.tobytes(), divisor
        if key not in self._known:
            constant, multiples = self._counts(labels)
            shares = {number: count // divisor for number, count in multiples.items()}
            self._known[key] = self._builder.extent(constant // divisor, shares)
        return self._known[key]

    def _counts(self, labels: IntArray) -> tuple[int, dict[int, int]]:
        """How many labels belong to no group, and how many to each channel of every group."""
        group = np.where(labels >= 0, self._channels.group_of[labels], -1)
        counts = np.bincount(group + 1, minlength=len(self._sizes) + 1)
        return int(counts[0]), {
            number: int(counts[number + 1] // self._sizes[number])
            for number in np.flatnonzero(counts[1:]).tolist()
        }


def module_macs(graph: ChannelGraph) -> dict[str, int]:
    """Count multiply-accumulates module by module, for one example.

    Args:
        graph: of the network; after cuts, the counts are those of the smaller network.

    Returns:
        Counts by path of the module; their sum is the cost of the graph.
    """
    found: dict[str, int] = {}
    for item in graph.wiring.work:
        share, divisors = _of_one_example(item, graph.wiring.program.batch)
        for labels, divisor in zip(item.extents, divisors, strict=True):
            share *= int(((labels < 0) | ~graph.removed[labels]).sum()) // divisor
        found[item.module] = found.get(item.module, 0) + share
    return found


def _of_one_example(item: OperatorMacs, batch: int) -> tuple[int, list[int]]:
    """The share of one example in an operator's work: a coefficient, and a divisor of each extent."""
    common = gcd(item.coefficient, batch)
    share, rest = item.coefficient // common, batch // common
    divisors = []
    for labels in item.extents:
        # Examples that were merged with channels are counted by a label vector.
        divisors.append(gcd(rest, _repeats(labels)))
        rest //= divisors[-1]
    return share, divisors


def _repeats(labels: IntArray) -> int:
    """Return the greatest common divisor of the multiplicities of the labels; no cut changes it."""
    return int(np.gcd.reduce(np.unique(labels, return_counts=True)[1]))


def _modules(node: Node) -> Mapping[str, Any]:
    """The module calls that an operator runs in, from the outside in."""
    return node.meta.get("nn_module_stack") or {}


def _returns(nodes: Sequence[Node]) -> list[dict[str, int]]:
    """For each step, the last step of each module call that it is part of."""
    returns: list[dict[str, int]] = [{} for _ in nodes]
    for step in range(len(nodes) - 1, -1, -1):
        later = returns[step + 1] if step + 1 < len(nodes) else {}
        returns[step] = {call: later.get(call, step) for call in _modules(nodes[step])}
    return returns


def _values(found: Any) -> list[Value]:
    listed = found if isinstance(found, Sequence) else [found]
    return [value for value in listed if isinstance(value, Value)]


def _memory_owners(program: Program, nodes: Sequence[Node]) -> dict[Node, Node]:
    """For each node, the node whose memory its result lives in; parameters are left out."""
    base: dict[Node, Node] = {}
    for node in nodes:
        if node.op == "placeholder":
            if program.placeholders[node.name].origin is Origin.INPUT:
                base[node] = node
        elif node.op == "call_function":
            source = node.all_input_nodes[0] if node.all_input_nodes else None
            shared = source is not None and source in base and _shares_memory(node)
            base[node] = base[source] if shared and source is not None else node
    return base


def _shares_memory(node: Node) -> bool:
    """Tell whether an operator returns its first argument's memory: views, in-place forms, list items."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or _operator(node) in _SAME_MEMORY:
        return True
    return any(item.alias_info is not None for item in schema.returns)


def _operator(node: Node) -> str:
    """Name of an operator without its overload; empty for everything else."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")
