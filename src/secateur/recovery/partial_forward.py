"""Run a captured forward pass from any step, with given masks and weights."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from secateur._compat import tree_leaves, tree_map_only
from secateur.devices import channels_last
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, Group
from secateur.graph.capture.program import Origin, Program
from secateur.graph.channel_graph import Keep
from secateur.graph.labels import BoolArray
from secateur.recovery.captured_forward import CapturedForward
from secateur.recovery.chunks import Chunk
from secateur.recovery.compact_layers import CompactInterpreter

Values = dict[Node, Any]
"""Values at one step of the forward pass that this step or a later one reads."""


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
        removed: BoolArray,
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
        """Return whether a value is computed already and read by the next step or a later one."""
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

    def seek(self, step: int) -> None:
        """Go to a step with all chunks, and start again from the inputs if it was passed already.

        Args:
            step: the step, which is not run.
        """
        if step < self.step:
            self._values.clear()
            self.step = 0
        self.advance(step)

    def outputs(self, chunks: int | None = None) -> tuple[Tensor, ...]:
        """Run all remaining steps.

        Args:
            chunks: number of chunks that are used; all by default.

        Returns:
            The outputs with the examples in their first dimension, for all examples of these chunks, each of
            shape ``(examples, ...)``; at least one.

        Raises:
            UsageError: no output has the examples in its first dimension.
        """
        final = len(self.forward.nodes) - 1
        self.advance(final, chunks)
        results: list[list[Tensor]] = []
        for chunk, values in zip(self.chunks, self._values, strict=True):
            arguments = [values.get(item, item) for item in tree_leaves(self.forward.nodes[final].args)]
            tensors = [item for item in arguments if isinstance(item, Tensor)]
            # A loss that the network returns beside its outputs belongs to no example.
            found = [item for item in tensors if item.dim() and not len(item) % self.forward.size]
            if not found:
                raise UsageError("no output has the examples in its first dimension")
            results.append([self.forward.trimmed(item, chunk) for item in found])
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))

    def fork(self, removed: BoolArray, tensors: Mapping[str, Tensor]) -> PartialForward:
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

    def reads_only_zeros(self, removed: BoolArray) -> bool:
        """Return whether removed channels are already zero for all examples, so that a mask changes nothing.

        Args:
            removed: per slot, whether its channel is removed; the next step is the first that reads one.

        Returns:
            False also if a later step, or one that computes a statistic, reads removed channels: its
            values are not known yet.
        """
        forward, node = self.forward, self.forward.nodes[self.step]
        if forward.contracting(removed) != {node.name} or forward.taking_statistics(removed):
            return False
        for read in forward.wiring.reads:
            gone = torch.from_numpy(np.flatnonzero(removed[read.labels]))
            if not len(gone):
                continue
            if read.fill:
                return False
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
    same = all(
        torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()), equal_nan=True)
        for one, other in zip(found, expected, strict=True)
    )
    return (changed, inner) if same else (forward, tensors)


def removed_when_kept(graph: ChannelGraph, group: Group, kept: Iterable[int]) -> BoolArray:
    """Mark the removed slots when only some channels of one group are kept, and all other groups."""
    return graph.after(Keep({group.name: sorted(kept)})).removed


def _placeholders(program: Program) -> Iterator[tuple[Node, Any]]:
    """Yield the placeholders of a program, in order, with the meaning of each."""
    for node in program.graph.nodes:
        if node.op == "placeholder":
            yield node, program.placeholders[node.name]
