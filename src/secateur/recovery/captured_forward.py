"""Run the captured forward pass of a network on a few hundred examples, from any step, with channels masked.

Reconstruction, width curves and ablation need values from inside the forward pass, many times.
So the pass is captured once for chunks of examples, in the current sizes of the network
(:class:`CapturedForward`), and run step by step with given masks and weights (:class:`PartialForward`).
Nothing is hooked and nothing is traced again.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from secateur._compat import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from secateur.batches import split_batch
from secateur.devices import channels_last, device_of
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, Group
from secateur.graph.additions import paths_of
from secateur.graph.capture.program import Origin, Program, call_arguments, capture
from secateur.graph.channel_graph import Keep
from secateur.graph.checking.masked import Removed
from secateur.graph.cutting.fit import refuse_misfit
from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.wiring import Wiring
from secateur.recovery.compact_layers import CompactInterpreter

_CHUNK = 64  # examples that run at once: enough to keep the device busy, and little memory
_CHUNK_BYTES = 1 << 28  # of activations, where the examples are large

Values = dict[Node, Any]
"""Values at one step of the forward pass that this step or a later one reads."""


@dataclass(frozen=True)
class Chunk:
    """Examples that run together.

    Attributes:
        leaves: the input tensors (and other arguments), flat, padded to the chunk size.
        count: number of examples; the rows after them are padding.
    """

    leaves: tuple[Any, ...]
    count: int


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
    gone: Removed

    @property
    def program(self) -> Program:
        """Return the captured program."""
        return self.wiring.program

    @property
    def examples(self) -> int:
        """Return the number of examples."""
        return sum(chunk.count for chunk in self.chunks)

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
        leaves = [self._joined(items) for items in zip(*(chunk.leaves for chunk in self.chunks), strict=True)]
        return self._with(leaves, slice(0, first)), self._with(leaves, slice(first, total))

    def _joined(self, items: Sequence[Any]) -> Any:
        if not isinstance(items[0], Tensor):
            return items[0]
        return torch.cat([self.trimmed(item, chunk) for item, chunk in zip(items, self.chunks, strict=True)])

    def _with(self, leaves: Sequence[Any], part: slice) -> CapturedForward:
        taken = [leaf[part] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return replace(self, chunks=_chunks(taken, self.size))

    def trimmed(self, value: Tensor, chunk: Chunk) -> Tensor:
        """Remove the padding from a value; the rows of one example are adjacent."""
        return value[: value.shape[0] * chunk.count // self.size]

    def first_affected_step(self, removed: Removed) -> int | None:
        """Find the first step that reads removed channels or branches; ``None`` if there is none."""
        affected = _contracting(self.wiring, removed) | _taking_statistics(self.wiring, removed)
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

    def adding_steps(self, removed: Removed) -> list[int]:
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


class PartialForward:
    """Run one network through a captured forward pass; all chunks in use wait at the same step.

    Only values that are read later are kept, so memory is that of one place of the network. If
    even that is too much, only the first chunks are used; chunks that are added later start from the
    inputs.

    One interpreter runs all steps: it masks like the masked original, but does not compute the values that
    a large mask sets to zero (:class:`~secateur.recovery.compact_layers.CompactInterpreter`).

    Args:
        forward: the forward pass and the examples.
        removed: per slot, whether its channel is masked.
        tensors: parameters and buffers by name; may be changed in place between steps.
        step: the next step.
        values: for each chunk in use, the values at this step.
    """

    def __init__(
        self,
        forward: CapturedForward,
        removed: Removed,
        tensors: Mapping[str, Tensor],
        *,
        step: int = 0,
        values: Sequence[Values] = (),
    ) -> None:
        self.forward = forward
        self.removed = removed
        self.tensors = tensors
        self.step = step
        self._values = list(values)
        self._interpreter = CompactInterpreter(forward.wiring, forward.gone, removed)
        self._weights: dict[Node, Tensor] = {}
        self._written: dict[Node, Tensor] = {}
        for node, item in _placeholders(forward.program):
            if item.origin is Origin.TENSOR:
                written = item.name in forward.program.written
                (self._written if written else self._weights)[node] = tensors[item.name]

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """Return the chunks in use."""
        return self.forward.chunks[: len(self._values)]

    def value(self, chunk: int, node: Node) -> Any:
        """Return a value that the next step or a later one reads."""
        return self._values[chunk][node]

    def holds(self, node: Node) -> bool:
        """Check whether a value is computed already and read by the next step or a later one."""
        return node in self._values[0]

    def advance(self, stop: int, chunks: int | None = None) -> None:
        """Run all steps before a step.

        Args:
            stop: the step, which is not run.
            chunks: number of chunks that are used from now on; all by default.
        """
        count = len(self.forward.chunks) if chunks is None else chunks
        stop = max(self.step, stop)
        del self._values[count:]
        with torch.no_grad():
            for values in self._values:
                self._run(values, self.step, stop)
            for chunk in self.forward.chunks[len(self._values) : count]:
                self._values.append(self._inputs(chunk))
                self._run(self._values[-1], 0, stop)
        self.step = stop

    def outputs(self, chunks: int | None = None) -> Tensor:
        """Run all remaining steps.

        Args:
            chunks: number of chunks that are used; all by default.

        Returns:
            The first output with the examples in its first dimension, for all examples of these chunks, shape
            ``(examples, ...)``.
        """
        final = len(self.forward.nodes) - 1
        self.advance(final, chunks)
        results = []
        for chunk, values in zip(self.chunks, self._values, strict=True):
            arguments = [values.get(item, item) for item in tree_leaves(self.forward.nodes[final].args)]
            tensors = [item for item in arguments if isinstance(item, Tensor)]
            # A loss that the network returns beside its outputs belongs to no example.
            first = next((item for item in tensors if item.dim() and not len(item) % self.forward.size), None)
            if first is None:
                raise UsageError("no output has the examples in its first dimension")
            results.append(self.forward.trimmed(first, chunk))
        return torch.cat(results)

    def fork(self, removed: Removed, tensors: Mapping[str, Tensor]) -> PartialForward:
        """Copy the values at this step for another network.

        Args:
            removed: its masked slots; must not affect earlier steps.
            tensors: its parameters and buffers; must be equal for earlier steps.
        """
        copied: dict[int, Tensor] = {}  # a value with two names stays one value; operators may work in place
        values = [
            {
                node: tree_map_only(Tensor, lambda leaf: copied.setdefault(id(leaf), leaf.clone()), value)
                for node, value in values.items()
            }
            for values in self._values
        ]
        return PartialForward(self.forward, removed, tensors, step=self.step, values=values)

    def reads_only_zeros(self, removed: Removed) -> bool:
        """Check whether removed channels are already zero for all examples, so that a mask changes nothing.

        Args:
            removed: per slot, whether its channel is removed; the next step is the first that reads one.

        Returns:
            False also if a later step, or one that computes a statistic, reads removed channels: its
            values are not known yet.
        """
        node, wiring = self.forward.nodes[self.step], self.forward.wiring
        if _contracting(wiring, removed) != {node.name} or _taking_statistics(wiring, removed):
            return False
        for read in wiring.reads:
            gone = torch.from_numpy(np.flatnonzero(removed[read.labels]))
            if not len(gone):
                continue
            argument: Any = node.args[read.argument]
            source = argument if read.place is None else argument[read.place]
            if not self.holds(source) or any(
                value.index_select(read.dim, gone.to(value.device)).any()
                for value in (self.value(chunk, source) for chunk in range(len(self.chunks)))
            ):
                return False
        return True

    def _inputs(self, chunk: Chunk) -> Values:
        """Copy the values before the first step (inputs, constants), since the program may write to them."""
        leaves = iter(chunk.leaves)
        values: Values = {}
        for node, item in _placeholders(self.forward.program):
            if item.origin is Origin.CONSTANT:
                values[node] = self.forward.program.constants[item.name]
            elif item.origin is Origin.INPUT:
                values[node] = next(leaves)
        return tree_map_only(Tensor, torch.clone, values)  # type: ignore[no-any-return]

    def _run(self, values: Values, start: int, stop: int) -> None:
        last = self.forward.last
        self._interpreter.env = ChainMap(values, self._weights)  # type: ignore[assignment]
        for index in range(start, stop):
            node = self.forward.nodes[index]
            sources = node.all_input_nodes
            for source in sources:
                if source in self._written and source not in values:
                    # Copied at the first use: reconstruction may change it until then.
                    values[source] = self._written[source].clone()
            values[node] = self._interpreter.run_node(node)
            for source in (*sources, node):
                if last[source] <= index:
                    values.pop(source, None)


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
    leaves, spec = _gathered(batches, arguments, device_of(model), max_examples)
    size = min(_CHUNK, _count(leaves), max(1, _CHUNK_BYTES // _bytes_per_example(graph)))
    chunks = _chunks(leaves, size)
    program = _program(model, graph, chunks[0].leaves, spec)
    wiring = _without_removed(graph, program, _steps_of(graph, program, size))
    nodes = tuple(node for node in wiring.program.graph.nodes if node.op != "placeholder")
    index_of = {node: index for index, node in enumerate(nodes)}
    last = {
        node: max((index_of[user] for user in node.users), default=-1) for node in wiring.program.graph.nodes
    }
    return CapturedForward(wiring, nodes, last, chunks, size, graph.removed)


def with_channels_innermost(
    forward: CapturedForward, tensors: Mapping[str, Tensor]
) -> tuple[CapturedForward, Mapping[str, Tensor]]:
    """Lay out a forward pass with the channels of images innermost in memory, which is faster on a CPU.

    A captured program may depend on the layout: for example, ``view()`` after a convolution may fail on
    channels-last tensors. So the first chunk is run in both layouts, and the old layout is kept if the
    results differ.

    Args:
        forward: the forward pass and the examples.
        tensors: parameters and buffers by name.

    Returns:
        The forward pass and the tensors to run it with, either both unchanged or both in the new layout.
    """
    if all(tensor.dim() != 4 or tensor.device.type != "cpu" for tensor in tensors.values()):
        return forward, tensors
    changed = replace(
        forward,
        chunks=tuple(
            replace(chunk, leaves=tree_map_only(Tensor, channels_last, chunk.leaves))
            for chunk in forward.chunks
        ),
    )
    inner = {name: channels_last(tensor) for name, tensor in tensors.items()}
    expected = PartialForward(forward, forward.gone, tensors).outputs(1)
    try:
        found = PartialForward(changed, forward.gone, inner).outputs(1)
    except RuntimeError:  # a view that is impossible in this layout
        return forward, tensors
    scale = float(expected.abs().max())
    if torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * scale, equal_nan=True):
        return changed, inner
    return forward, tensors


def removed_when_kept(graph: ChannelGraph, group: Group, kept: Iterable[int]) -> Removed:
    """Mark the removed slots when only some channels of one group are kept, and all other groups."""
    return graph.after(Keep({group.name: sorted(kept)})).removed


def removed_without(graph: ChannelGraph, branch: str) -> Removed:
    """Mark what is removed when one residual branch is absent, and all channels are kept."""
    return graph.after(Keep({}, [branch])).removed


def _contracting(wiring: Wiring, removed: Removed) -> set[str]:
    """Find the operators that contract over removed channels."""
    return {read.node for read in wiring.reads if removed[read.labels].any()}


def _taking_statistics(wiring: Wiring, removed: Removed) -> set[str]:
    """Find the operators that compute a statistic over removed channels."""
    return {
        item.node
        for item in wiring.statistics
        for _, value in item.arguments
        for labels in value.labels
        if labels is not None and removed[labels].any()
    }


def _placeholders(program: Program) -> Iterator[tuple[Node, Any]]:
    """Yield the placeholders of a program, in order, with the meaning of each."""
    for node in program.graph.nodes:
        if node.op == "placeholder":
            yield node, program.placeholders[node.name]


def _bytes_per_example(graph: ChannelGraph) -> int:
    """Compute the peak bytes of activations for one example."""
    return max(1, graph.cost().memory // max(1, graph.wiring.program.input_shapes[0][0]))


def _bytes(node: Node) -> int:
    """Compute the bytes of a value; 0 if it is not a tensor."""
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _count(leaves: Sequence[Any]) -> int:
    return next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))


def _chunks(leaves: Sequence[Any], size: int) -> tuple[Chunk, ...]:
    """Divide examples into chunks; the last one is padded with the last example."""
    total, chunks = _count(leaves), []
    for start in range(0, total, size):
        index = torch.arange(start, start + size).clamp(max=total - 1)
        part = tuple(
            leaf.index_select(0, index.to(leaf.device)) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        )
        chunks.append(Chunk(part, min(size, total - start)))
    return tuple(chunks)


def _gathered(
    batches: Iterable[Any], arguments: Sequence[str], device: torch.device, max_examples: int | None
) -> tuple[list[Any], Any]:
    """Join the inputs of all batches: flat arguments, and the structure in which the network takes them."""
    parts: list[list[Any]] = []
    spec, count = None, 0
    for batch in batches:
        inputs, _ = split_batch(batch)
        flat, spec = tree_flatten(call_arguments(_traced(inputs, arguments)))
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        if not tensors or len({leaf.shape[:1] for leaf in tensors}) != 1:
            raise UsageError("a batch needs tensors with the examples in their first dimension")
        if parts and _shapes(flat) != _shapes(parts[0]):
            raise UsageError(
                f"batches have examples of different shapes ({_shapes(parts[0])} and {_shapes(flat)}); pass "
                "batches of one shape, such as sequences padded to one length"
            )
        parts.append([leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in flat])
        count += tensors[0].shape[0]
        if max_examples is not None and count >= max_examples:
            break
    if not count:
        raise UsageError("there are no examples; pass batches with at least one")
    joined = [
        torch.cat(items)[:max_examples] if isinstance(items[0], Tensor) else items[0]
        for items in map(list, zip(*parts, strict=True))
    ]
    return joined, spec


def _traced(inputs: Any, arguments: Sequence[str]) -> Any:
    """Those of the named arguments that a network was traced with, in the order in which it took them."""
    if not isinstance(inputs, Mapping) or not arguments:
        return inputs
    missing = [name for name in arguments if name not in inputs]
    if missing:
        raise UsageError(
            f"a batch with the keys {', '.join(map(str, inputs))} has no '{missing[0]}', which the network "
            "was traced with"
        )
    return {name: inputs[name] for name in arguments}


def _shapes(leaves: Sequence[Any]) -> list[tuple[int, ...]]:
    """Shapes of the tensors among some arguments, without the examples."""
    return [tuple(leaf.shape[1:]) for leaf in leaves if isinstance(leaf, Tensor)]


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

    Args:
        graph: of the present network.
        program: its program.
        size: number of examples that it was captured for.

    Raises:
        UsageError: the program runs other operators.
    """
    absent = {name for item in graph.wiring.branches if item.name in graph.absent for name in item.nodes}
    traced = [step for step in _steps(graph.wiring.program) if step.name not in absent]
    found = [step for step in _steps(program) if not any(map(graph.is_replaced, paths_of(step)))]
    if [str(step.target) for step in traced] != [str(step.target) for step in found]:
        raise UsageError(
            f"the forward pass for {size} examples is not the one that was traced; "
            "trace the network with inputs of this shape"
        )
    return {old.name: new.name for old, new in zip(traced, found, strict=True)}


def _steps(program: Program) -> list[Node]:
    return [node for node in program.graph.nodes if node.op != "placeholder"]


def _without_removed(graph: ChannelGraph, program: Program, steps: Mapping[str, str]) -> Wiring:
    """Create the wiring of another program, and labels without the channels that were cut before.

    Args:
        graph: of the present network.
        program: its program.
        steps: the step of the program for each step of the traced one that it still has.
    """
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
