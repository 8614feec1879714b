"""Build a cost model from a propagated program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from secateur.graph.branches import ResidualBranch
from secateur.graph.capture.nodes import operator_name
from secateur.graph.capture.program import Program
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.channels import Channels
from secateur.graph.conditions import Case, both, exclusive
from secateur.graph.costs import CostModel, CostModelBuilder
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.groups import IntArray
from secateur.graph.labels import SlotTable, Value
from secateur.graph.lifetimes import Lifetimes
from secateur.graph.propagation.findings import Findings, OperatorMacs
from secateur.graph.propagation.propagate import Environment

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


def count_costs(
    model: nn.Module,
    program: Program,
    slots: SlotTable,
    propagated: tuple[Environment, Findings],
    channels: Channels,
    branches: Sequence[ResidualBranch] = (),
) -> CostModel:
    """Count the costs of a network as polynomials of group widths and of the branches that are present.

    Args:
        model: the network; only names and item sizes of its tensors are read.
        program: its evaluation-mode program.
        slots: the table after propagation.
        propagated: what propagation returned for the program.
        channels: the channels of the network.
        branches: its residual branches.
    """
    env, findings = propagated
    costing = _Costing(channels, branches)
    costing.count_tensors(model, slots)
    costing.count_macs(findings, program.batch)
    costing.count_activations(program, env)
    return costing.builder.build()


class _Costing:
    """Add the costs of one program to a cost model.

    Args:
        channels: the channels of the network.
        branches: its residual branches.
    """

    def __init__(self, channels: Channels, branches: Sequence[ResidualBranch]) -> None:
        self._channels = channels
        self._branches = branches
        self.builder = CostModelBuilder(len(channels.groups), len(branches))
        self._known: dict[tuple[bytes, int], int] = {}
        self._indicators = [
            {True: self.builder.present(number), False: self.builder.absent(number)}
            for number in range(len(branches))
        ]

    def count_tensors(self, model: nn.Module, slots: SlotTable) -> None:
        """Count the elements and bytes of all parameters and buffers."""
        owners = _by_name(branch.tensors for branch in self._branches)
        parameters = {name for name, _ in model.named_parameters()}
        for name, tensor in named_tensors(model).items():
            extents = [self._extent(labels) for labels in slots.tensor(name).labels if labels is not None]
            extents += [self._indicators[number][True] for number in owners.get(name, ())]
            if name in parameters:
                self.builder.params(1, extents)
            self.builder.bytes(tensor.element_size(), extents)

    def count_macs(self, findings: Findings, batch: int) -> None:
        """Count multiply-accumulates, for one example."""
        owners = _by_name(branch.nodes for branch in self._branches)
        for item in findings.work:
            share, divisors = _of_one_example(item, batch)
            pairs = zip(item.extents, divisors, strict=True)
            extents = [self._extent(labels, divisor) for labels, divisor in pairs]
            extents += [self._indicators[number][True] for number in owners.get(item.node, ())]
            self.builder.macs(share, extents)

    def count_activations(self, program: Program, env: Environment) -> None:
        """Count the bytes of values, and when each is alive.

        The caller holds the inputs throughout, and code that calls a module holds the arguments until the
        module returns.
        """
        lifetimes = Lifetimes(program, self._branches)
        # Values of one layer are alive under the same few conditions, at many steps.
        cases = cache(lambda one, other: exclusive(both(one, other)))
        numbers: dict[tuple[Node, int | None, Case, tuple[int, ...]], list[int]] = {}

        def declared(node: Node, item_size: int | None, case: Case, broadcast: tuple[int, ...]) -> list[int]:
            key = node, item_size, case, broadcast
            if key not in numbers:
                numbers[key] = self._value(node, env[node], case, item_size, broadcast)
            return numbers[key]

        live: list[list[int]] = [[] for _ in lifetimes.nodes]
        for alive in lifetimes.values():
            for point in range(alive.first, alive.last + 1):
                for case in cases(alive.condition, lifetimes.runs[point]):
                    live[point] += declared(alive.node, None, case, alive.broadcast)
        for step, node in enumerate(lifetimes.nodes):
            if operator_name(node) in _WITH_INDICES:
                for case in exclusive(lifetimes.runs[step]):
                    live[step] += declared(node, torch.int64.itemsize, case, ())
        self.builder.live([point for point in live if point])

    def _value(
        self, node: Node, found: Any, case: Case, item_size: int | None, broadcast: tuple[int, ...]
    ) -> list[int]:
        """Declare the results of an operator, which keep one position of each dimension in ``broadcast``."""
        results = node.meta.get("val")
        listed = results if isinstance(results, Sequence) else [results]
        indicators = [self._indicators[branch][there] for branch, there in sorted(case)]
        numbers = []
        for value, result in zip(_values(found), listed, strict=False):
            if isinstance(result, Tensor):
                extents = [
                    self.builder.extent(size, {}) if labels is None else self._extent(labels)
                    for dim, (size, labels) in enumerate(zip(value.shape, value.labels, strict=True))
                    if dim not in broadcast
                ]
                size = item_size or result.element_size()
                numbers.append(self.builder.value(size, [*extents, *indicators]))
        return numbers

    def _extent(self, labels: IntArray, divisor: int = 1) -> int:
        """Declare the size of a labelled dimension, or an exact share: a constant plus multiples of width."""
        key = labels.tobytes(), divisor
        if key not in self._known:
            constant, *multiples = (count // divisor for count in self._channels.count(labels))
            self._known[key] = self.builder.extent(constant, dict(enumerate(multiples)))
        return self._known[key]


def module_macs(graph: ChannelGraph) -> dict[str, int]:
    """Count multiply-accumulates module by module, for one example.

    Args:
        graph: of the network; after cuts, the counts are those of the smaller network.

    Returns:
        Counts by path of the module; their sum is the cost of the graph.
    """
    gone = {node for branch in graph.wiring.branches if branch.name in graph.absent for node in branch.nodes}
    found: dict[str, int] = {}
    for item in graph.wiring.work:
        if item.node in gone:
            continue
        share, divisors = _of_one_example(item, graph.wiring.program.batch)
        for labels, divisor in zip(item.extents, divisors, strict=True):
            share *= int(((labels < 0) | ~graph.removed[labels]).sum()) // divisor
        found[item.module] = found.get(item.module, 0) + share
    return found


def _by_name(parts: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    """List, for each name, the numbers of the parts that contain it."""
    found: dict[str, list[int]] = {}
    for number, names in enumerate(parts):
        for name in names:
            found.setdefault(name, []).append(number)
    return found


def _of_one_example(item: OperatorMacs, batch: int) -> tuple[int, list[int]]:
    """Compute the share of one example in an operator's work: a coefficient, and a divisor of each extent."""
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


def _values(found: Any) -> list[Value]:
    listed = found if isinstance(found, Sequence) else [found]
    return [value for value in listed if isinstance(value, Value)]
