"""Capture the forward pass of a network in its current sizes, and a few hundred examples to run it on.

Reconstruction, width curves and ablation need values from inside the forward pass, many times. So the pass is
captured once for chunks of examples, and run step by step (:mod:`secateur.recovery.partial_forward`).
Nothing is hooked and nothing is traced again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from secateur._compat import tree_leaves, tree_unflatten
from secateur.devices import device_of
from secateur.errors import UsageError
from secateur.graph import ChannelGraph
from secateur.graph.capture.nodes import module_paths
from secateur.graph.capture.program import Program, capture
from secateur.graph.channel_graph import Keep
from secateur.graph.cutting.fit import refuse_misfit
from secateur.graph.groups import IntArray
from secateur.graph.labels import BoolArray, Labels, Value
from secateur.graph.wiring import Wiring
from secateur.recovery.chunks import Chunk, chunks_of, count_examples, gather
from secateur.recovery.consumers import Consumer, find_consumers

_CHUNK = 64  # examples that run at once: enough to keep the device busy, and little memory
_CHUNK_TOKENS = 512  # of texts that run at once, where the scores of each token are large
_CHUNK_BYTES = 1 << 28  # of activations, where the examples are large


@dataclass(frozen=True, eq=False)
class CapturedForward:
    """A captured forward pass, and the examples to run it on in chunks of one size.

    Attributes:
        wiring: the network's wiring with the captured program, in current sizes.
        nodes: the steps: all nodes of the program but the placeholders.
        last: for each value, the index of the last step that reads it, -1 if there is none.
        chunks: the examples.
        size: number of examples in a chunk.
        gone: per slot, whether its channel was cut before; the sizes do not include it.
    """

    wiring: Wiring
    nodes: tuple[Node, ...]
    last: dict[Node, int]
    chunks: tuple[Chunk, ...]
    size: int
    gone: BoolArray

    @property
    def program(self) -> Program:
        """Return the captured program."""
        return self.wiring.program

    @cached_property
    def consumers(self) -> tuple[Consumer, ...]:
        """Find the layers that can be refitted, in the order of their steps."""
        return tuple(find_consumers(self.wiring))

    @property
    def examples(self) -> int:
        """Return the number of examples."""
        return sum(chunk.count for chunk in self.chunks)

    @property
    def first_output(self) -> Tensor | None:
        """Return the first output with the examples in its first dimension, on shapes alone."""
        return _first_output(self.program, self.size)

    @property
    def scored_tokens(self) -> int:
        """Count the tokens of an example, if the first output scores the whole vocabulary for each of them.

        Returns:
            The number of tokens; 0 if the first output is something else.
        """
        return _scored_tokens(self.program, self.size)

    def chunks_within(self, step: int, memory: int) -> int:
        """Count the chunks, at least one, whose values fit into some memory from a step onwards.

        Later steps are included, so the number never decreases from step to step, and a chunk is added only
        once.

        Args:
            step: index of the step.
            memory: bytes.
        """
        live = int(self._live[step:].max(initial=1))
        return max(1, min(len(self.chunks), memory // max(1, live)))

    @cached_property
    def _live(self) -> IntArray:
        """Compute the bytes of the values of one chunk at each step, including its result; shape (steps,)."""
        changes = np.zeros(len(self.nodes) + 1, dtype=np.int64)
        for index, node in enumerate(self.nodes):
            changes[index] += _bytes(node)
            changes[max(index, self.last[node]) + 1] -= _bytes(node)
        return np.cumsum(changes)[:-1]

    def split(self, share: float) -> tuple[CapturedForward, CapturedForward]:
        """Split the examples: the same pass for about a share of them, and for the others."""
        total = self.examples
        first = max(1, min(total - 1, round(total * share)))
        leaves = self._leaves()
        return self._with(leaves, slice(0, first)), self._with(leaves, slice(first, total))

    def first(self, count: int) -> CapturedForward:
        """Return the same pass for the first examples."""
        return self._with(self._leaves(), slice(0, count))

    def _leaves(self) -> list[Any]:
        return [self._joined(items) for items in zip(*(chunk.leaves for chunk in self.chunks), strict=True)]

    def _joined(self, items: Sequence[Any]) -> Any:
        if not isinstance(items[0], Tensor):
            return items[0]
        return torch.cat([self.trimmed(item, chunk) for item, chunk in zip(items, self.chunks, strict=True)])

    def _with(self, leaves: Sequence[Any], part: slice) -> CapturedForward:
        taken = [leaf[part] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return replace(self, chunks=chunks_of(taken, self.size))

    def trimmed(self, value: Tensor, chunk: Chunk) -> Tensor:
        """Remove the padding from a value; the rows of one example are adjacent."""
        return value[: value.shape[0] * chunk.count // self.size]

    def first_affected_step(self, removed: BoolArray) -> int | None:
        """Find the first step that reads removed channels or branches; ``None`` if there is none."""
        affected = self.contracting(removed) | self.taking_statistics(removed)
        first = next((step for step, node in enumerate(self.nodes) if node.name in affected), None)
        return min([*self.adding_steps(removed)[:1], *([] if first is None else [first])], default=None)

    def steps_of_branches(self, graph: ChannelGraph) -> dict[str, int]:
        """Find the step that adds each residual branch that may be removed, by name of the branch.

        Args:
            graph: of the network.
        """
        found = {
            branch.name: self.first_affected_step(removed_without(graph, branch.name))
            for branch in graph.branches
            if branch.prunable
        }
        return {name: step for name, step in found.items() if step is not None}

    def adding_steps(self, removed: BoolArray) -> list[int]:
        """List the steps that add removed branches, other than those inside removed branches, ascending."""
        first = len(self.wiring.group_of)
        slot = {branch.name: first + place for place, branch in enumerate(self.wiring.branches)}
        parent = {slot[branch.name]: slot.get(branch.parent or "") for branch in self.wiring.branches}
        adding = {
            item.node
            for item in self.wiring.evaluation.operands
            if removed[item.slot]
            and not self.gone[item.slot]
            and not ((outer := parent[item.slot]) is not None and removed[outer])
        }
        return [step for step, node in enumerate(self.nodes) if node.name in adding]

    def contracting(self, removed: BoolArray) -> set[str]:
        """Find the operators that contract over removed channels."""
        return {read.node for read in self.wiring.reads if removed[read.labels].any()}

    def taking_statistics(self, removed: BoolArray) -> set[str]:
        """Find the operators that compute a statistic over removed channels."""
        return {
            item.node
            for item in self.wiring.statistics
            for _, value in item.arguments
            for labels in value.labels
            if labels is not None and removed[labels].any()
        }


def capture_forward(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    max_examples: int | None = None,
) -> CapturedForward:
    """Capture the forward pass of a network for the examples of some batches.

    Args:
        model: the network that the graph describes; not changed.
        graph: its channel graph.
        batches: inputs, pairs of inputs and targets (which are not used), or mappings of named arguments, of
            which those that the network was traced with are used; batch first.
        max_examples: how many examples to use; all by default.

    Returns:
        The forward pass and the examples.

    Raises:
        UsageError: there are no examples, the forward pass depends on the number of examples, or the graph
            describes another network.
    """
    refuse_misfit(model, graph)
    arguments = graph.wiring.program.arguments
    leaves, spec = gather(batches, arguments, device_of(model), max_examples)
    graph.wiring.program.refuse_other_branch(leaves)
    size = _chunk_size(graph, leaves)
    chunks = chunks_of(leaves, size)
    program = _program(model, graph, chunks[0].leaves, spec)
    wiring = _without_removed(graph, program, _steps_of(graph, program, size))
    nodes = tuple(node for node in wiring.program.graph.nodes if node.op != "placeholder")
    index_of = {node: index for index, node in enumerate(nodes)}
    last = {
        node: max((index_of[user] for user in node.users), default=-1) for node in wiring.program.graph.nodes
    }
    return CapturedForward(wiring, nodes, last, chunks, size, graph.removed)


def removed_without(graph: ChannelGraph, branch: str) -> BoolArray:
    """Mark what is removed when one residual branch is absent, and all channels are kept."""
    return graph.after(Keep({}, [branch])).removed


def _first_output(program: Program, batch: int) -> Tensor | None:
    """Return the first output of a program with the examples in its first dimension, on shapes alone."""
    outputs = tree_leaves(_steps(program)[-1].args)
    values = (item.meta.get("val") for item in outputs if isinstance(item, Node))
    tensors = (item for item in values if isinstance(item, Tensor))
    return next((item for item in tensors if item.dim() and not len(item) % batch), None)


def _scored_tokens(program: Program, batch: int) -> int:
    """Count the tokens of an example, if the first output scores the whole vocabulary for each of them.

    The vocabulary is known from an embedding that is indexed with equally many tokens, and has as many rows
    as there are scores.
    """
    scores = _first_output(program, batch)
    if scores is None or scores.dim() != 3:
        return 0
    for node in _steps(program):
        if str(node.target) == "aten.embedding.default":
            table, tokens = (item.meta["val"] for item in node.all_input_nodes[:2])
            if tokens.shape == scores.shape[:2] and len(table) == scores.shape[2]:
                return int(scores.shape[1])
    return 0


def _chunk_size(graph: ChannelGraph, leaves: Sequence[Any]) -> int:
    """Choose how many examples run at once."""
    traced, examples = graph.wiring.program, count_examples(leaves)
    size = min(_CHUNK, examples, max(1, _CHUNK_BYTES // _bytes_per_example(graph)))
    if not _scored_tokens(traced, traced.batch):
        return size
    # Texts may be longer than the traced one; few are measured, and enough tokens keep a device busy.
    tokens = next(leaf for leaf in leaves if isinstance(leaf, Tensor)).numel() // examples
    return min(size, max(1, _CHUNK_TOKENS // tokens))


def _bytes_per_example(graph: ChannelGraph) -> int:
    """Compute the peak bytes of activations for one example."""
    return max(1, graph.cost().memory // max(1, graph.wiring.program.input_shapes[0][0]))


def _bytes(node: Node) -> int:
    """Compute the bytes of a value; 0 if it is not a tensor."""
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _program(model: nn.Module, graph: ChannelGraph, leaves: Sequence[Any], spec: Any) -> Program:
    """Return the program for one chunk; the traced program if it has the right sizes."""
    traced = graph.wiring.program
    shapes = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
    if traced.input_shapes == shapes and not graph.removed.any():
        return traced
    args, kwargs = tree_unflatten(list(leaves), spec)
    return capture(model, kwargs or args)


def _steps_of(graph: ChannelGraph, program: Program, size: int) -> dict[str, str]:
    """Find the step of a program for each step of the traced one that it still has, by name.

    Steps of removed residual branches are left out, and so are those that took their place.

    Raises:
        UsageError: the program runs other operators.
    """
    absent = {name for item in graph.wiring.branches if item.name in graph.absent for name in item.nodes}
    traced = [step for step in _steps(graph.wiring.program) if step.name not in absent]
    found = [step for step in _steps(program) if not any(map(graph.is_replaced, module_paths(step)))]
    pairs = _aligned(traced, found)
    if pairs is None:
        raise UsageError(
            f"the forward pass for {size} examples is not the one that was traced; "
            "trace the network with inputs of this shape"
        )
    return {old.name: new.name for old, new in pairs}


def _aligned(traced: Sequence[Node], found: Sequence[Node]) -> list[tuple[Node, Node]] | None:
    """Pair the steps of two programs in order; ``None`` if they run other operators.

    A single example is not repeated where several are, so a step that only repeats a value may be in one of
    the two programs.
    """
    pairs, place = [], 0
    for step in found:
        while place < len(traced) and traced[place].target != step.target and _repeats(traced[place]):
            place += 1
        if place < len(traced) and traced[place].target == step.target:
            pairs.append((traced[place], step))
            place += 1
        elif not _repeats(step):
            return None
    return pairs if all(map(_repeats, traced[place:])) else None


def _repeats(step: Node) -> bool:
    """Return whether a step repeats a value along dimensions of size one, and does nothing else."""
    return str(step.target) == "aten.expand.default"


def _steps(program: Program) -> list[Node]:
    return [node for node in program.graph.nodes if node.op != "placeholder"]


def _without_removed(graph: ChannelGraph, program: Program, steps: Mapping[str, str]) -> Wiring:
    """Create the wiring of another program, and labels without the channels that were cut before."""
    gone = graph.removed

    def left(labels: IntArray) -> IntArray:
        return labels[(labels < 0) | ~gone[labels]]

    def value(item: Value) -> Value:
        labels: tuple[Labels, ...] = tuple(None if vector is None else left(vector) for vector in item.labels)
        shape = tuple(
            size if vector is None else len(vector) for size, vector in zip(item.shape, labels, strict=True)
        )
        return Value(shape, labels)

    wiring = graph.wiring
    reads = tuple(
        replace(read, node=steps[read.node], labels=left(read.labels))
        for read in wiring.reads
        if read.node in steps
    )
    statistics = tuple(
        replace(
            item,
            node=steps[item.node],
            arguments=tuple((place, value(argument)) for place, argument in item.arguments),
            result=value(item.result),
            sizes=tuple((place, within, left(labels)) for place, within, labels in item.sizes),
            factors=tuple((place, left(labels), power) for place, labels, power in item.factors),
        )
        for item in wiring.statistics
    )
    operands = tuple(
        replace(item, node=steps[item.node], own=frozenset(steps[name] for name in item.own if name in steps))
        for item in wiring.evaluation.operands
        if not gone[item.slot]
    )
    forward = replace(
        wiring.evaluation, program=program, reads=reads, statistics=statistics, operands=operands
    )
    return replace(wiring, evaluation=forward)
