"""Find out whether what an operator reads is what its module was called with.

A hook sees what a module is called with, not what is made inside its forward pass. So channels can be masked,
or watched, at the input of a module only where the operator reads that very input, and where nothing else
in the module touches it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from secateur.graph.capture.nodes import module_calls, operator_name
from secateur.graph.capture.operators import COPIES
from secateur.graph.capture.program import Origin, Program
from secateur.graph.labels import Value
from secateur.graph.propagation.findings import Read

_ORDER = COPIES | {"transpose", "permute", "movedim", "swapaxes", "alias"}
"""Operators that keep every number and every channel, at other positions."""


def at_input(program: Program, env: Mapping[Node, Any], reads: Sequence[Read]) -> list[bool]:
    """Find out which reads are of the input of their module.

    Args:
        program: the captured forward pass.
        env: the value of every node.
        reads: what operators read.

    Returns:
        For each read, whether its module was called with what it reads, its channels in the same dimension,
        with no other tensor beside it, and whether the module does nothing else with it than to read it.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    known = {nodes[name] for name, item in program.placeholders.items() if item.origin is not Origin.INPUT}
    arguments = {(nodes[read.node], read.argument) for read in reads if read.place is None}
    calls = {node: module_calls(node) for node in program.graph.nodes}
    entering: dict[str, set[Node]] = {}
    for node in program.graph.nodes:
        sources = [source for source in node.all_input_nodes if source not in known]
        for call in calls[node]:
            entering.setdefault(call, set()).update(source for source in sources if call not in calls[source])
    return [_is_input(nodes[read.node], read, env, _Calls(calls, entering), arguments) for read in reads]


@dataclass(frozen=True)
class _Calls:
    """The module calls of a program.

    Attributes:
        of: the calls that each operator runs in, from the outside in.
        entering: for each call, the values that it reads and that were computed outside it.
    """

    of: Mapping[Node, Mapping[str, str]]
    entering: Mapping[str, Collection[Node]]


def _is_input(
    node: Node, read: Read, env: Mapping[Node, Any], calls: _Calls, arguments: Collection[tuple[Node, int]]
) -> bool:
    source = node.args[read.argument]
    if not calls.of[node] or read.place is not None or not isinstance(source, Node):
        return False
    *_, call = calls.of[node]
    while call in calls.of[source] and operator_name(source) in _ORDER:
        source = source.all_input_nodes[0]
    value = env.get(source)
    if set(calls.entering[call]) != {source} or not isinstance(value, Value):
        return False
    if not -len(value.shape) <= read.dim < len(value.shape):
        return False
    labels = value.labels[read.dim]
    if labels is None or not np.array_equal(labels, read.labels):
        return False
    return all(use in arguments for use in _uses(source, call, calls))


def _uses(source: Node, call: str, calls: _Calls) -> Iterator[tuple[Node, int]]:
    """Find every operator of a call that is given a value, however ordered, and as which argument."""
    for user in source.users:
        if call not in calls.of[user]:
            continue
        if operator_name(user) in _ORDER:
            yield from _uses(user, call, calls)
            continue
        places = [place for place, item in enumerate(user.args) if item is source]
        yield from ((user, place) for place in places or [-1])
