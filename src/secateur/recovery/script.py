"""Scripts: a network's captured forward pass, laid out for a few hundred examples.

Repairing a network layer by layer, and measuring what a cut does, need values from the middle of
the forward pass, over and over. So the pass is captured once for a portion of examples, and run
step by step from there (:mod:`secateur.recovery.run`), in the sizes that the network has now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.errors import UsageError
from secateur.graph import ChannelGraph
from secateur.graph.capture import Origin, Program, call_arguments, capture
from secateur.graph.fit import refuse_misfit
from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.masked import Removed
from secateur.graph.wiring import Pass, Wiring
from secateur.latency import device_of

_PORTION = 64  # examples that run at once: enough to keep the device busy, little to hold
_PORTION_BYTES = 1 << 28  # of activations, where the examples are large


@dataclass(frozen=True)
class Portion:
    """Examples that run together.

    Attributes:
        leaves: the input tensors (and other arguments), flat, filled up to the portion's size.
        count: number of examples that count; those behind them only fill up.
    """

    leaves: tuple[Any, ...]
    count: int


@dataclass(frozen=True, eq=False)
class Script:
    """A forward pass for portions of one size.

    Attributes:
        wiring: the network's wiring with the program of this script, in current sizes.
        nodes: the steps, without placeholders.
        last: for each value, the index of the last step that needs it.
        portions: the examples.
        size: number of examples in a portion.
        gone: per slot, whether its channel was cut before, so that the sizes are without it.
        copies: how often each portion holds its examples, one copy behind the other.
    """

    wiring: Wiring
    nodes: tuple[Node, ...]
    last: dict[Node, int]
    portions: tuple[Portion, ...]
    size: int
    gone: Removed
    copies: int = 1

    @property
    def program(self) -> Program:
        """The captured forward pass."""
        return self.wiring.program

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(portion.count for portion in self.portions)

    def fitting(self, step: int, memory: int) -> int:
        """How many portions, at least one, hold no more than so many bytes of values from a step onwards.

        Later steps count too, so the number never falls along the way, and a portion joins but once.
        """
        live = int(self._live[step:].max(initial=1))
        return max(1, min(len(self.portions), memory // max(1, live)))

    @cached_property
    def _live(self) -> IntArray:
        """Bytes of the values that one portion holds at each step, its result included; shape (steps,)."""
        changes = np.zeros(len(self.nodes) + 1, dtype=np.int64)
        for index, node in enumerate(self.nodes):
            changes[index] += _bytes(node)
            changes[max(index, self.last[node]) + 1] -= _bytes(node)
        return np.cumsum(changes)[:-1]

    def split(self, share: float) -> tuple[Script, Script]:
        """Two scripts of the same forward pass: the first examples, about a share of them, and the others."""
        total = self.examples
        first = max(1, min(total - 1, round(total * share)))
        leaves = [
            self._joined(items) for items in zip(*(portion.leaves for portion in self.portions), strict=True)
        ]
        return self._with(leaves, slice(0, first)), self._with(leaves, slice(first, total))

    def _joined(self, items: Sequence[Any]) -> Any:
        if not isinstance(items[0], Tensor):
            return items[0]
        return torch.cat([self.trimmed(item, part) for item, part in zip(items, self.portions, strict=True)])

    def _with(self, leaves: Sequence[Any], part: slice) -> Script:
        taken = [leaf[part] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return replace(self, portions=_portions(taken, self.size))

    def trimmed(self, value: Tensor, portion: Portion) -> Tensor:
        """The rows of a value that belong to examples that count; an example's rows lie together.

        With several copies, the result has one more dimension in front, for the copies.
        """
        if self.copies > 1:
            value = value.unflatten(0, (self.copies, value.shape[0] // self.copies))
            return value[:, : value.shape[1] * portion.count // self.size]
        return value[: value.shape[0] * portion.count // self.size]


def write_script(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    max_examples: int | None = None,
    copies: int = 1,
) -> Script:
    """Captures the forward pass of a network for the examples of some batches.

    Args:
        model: the network that the graph describes, left as it was.
        graph: its channel graph.
        batches: inputs, or pairs of inputs and targets (which are not used); batch first.
        max_examples: how many examples to use; all by default.
        copies: how often each portion holds its examples.

    Returns:
        The script.

    Raises:
        UsageError: there are no examples, or the forward pass depends on the number of examples.
    """
    refuse_misfit(model, graph)
    leaves, spec = gathered(batches, device_of(model), max_examples)
    size = min(_PORTION, _count(leaves), max(1, _PORTION_BYTES // _bytes_per_example(graph)))
    portions = _copied(_portions(leaves, size), copies)
    wiring = _current(graph, _program(model, graph, portions[0].leaves, spec, size * copies))
    nodes = tuple(node for node in wiring.program.graph.nodes if node.op != "placeholder")
    index_of = {node: index for index, node in enumerate(nodes)}
    last = {
        node: max((index_of[user] for user in node.users), default=-1) for node in wiring.program.graph.nodes
    }
    return Script(wiring, nodes, last, portions, size, graph.removed, copies)


def _bytes_per_example(graph: ChannelGraph) -> int:
    """Peak bytes of activations for one example."""
    return max(1, graph.cost().memory // max(1, graph.wiring.program.input_shapes[0][0]))


def _bytes(node: Node) -> int:
    """Bytes of a value; nothing where it is no tensor."""
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _count(leaves: Sequence[Any]) -> int:
    return next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))


def _portions(leaves: Sequence[Any], size: int) -> tuple[Portion, ...]:
    """Examples in portions; the last is filled up with the last example."""
    total, portions = _count(leaves), []
    for start in range(0, total, size):
        index = torch.arange(start, start + size).clamp(max=total - 1)
        part = tuple(
            leaf.index_select(0, index.to(leaf.device)) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        )
        portions.append(Portion(part, min(size, total - start)))
    return tuple(portions)


def _copied(portions: tuple[Portion, ...], copies: int) -> tuple[Portion, ...]:
    if copies == 1:
        return portions
    return tuple(
        replace(
            portion,
            leaves=tuple(
                torch.cat([leaf] * copies) if isinstance(leaf, Tensor) else leaf for leaf in portion.leaves
            ),
        )
        for portion in portions
    )


def gathered(
    batches: Iterable[Any], device: torch.device, max_examples: int | None = None
) -> tuple[list[Any], Any]:
    """The inputs of all batches, joined: flat arguments, and how they are called."""
    parts: list[list[Any]] = []
    spec, count = None, 0
    for batch in batches:
        inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
        flat, spec = tree_flatten(call_arguments(inputs))
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        if not tensors or len({leaf.shape[:1] for leaf in tensors}) != 1:
            raise UsageError("a batch needs tensors with the examples in their first dimension")
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


def _program(model: nn.Module, graph: ChannelGraph, leaves: Sequence[Any], spec: Any, size: int) -> Program:
    """The program for a portion; the traced one if it has the right sizes."""
    traced = graph.wiring.program
    shapes = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
    if traced.input_shapes == shapes and not graph.removed.any():
        return traced
    args, kwargs = tree_unflatten(list(leaves), spec)
    program = capture(model, kwargs or args)
    if _steps(program) != _steps(traced):
        raise UsageError(
            f"the forward pass for {size} examples is not the one that was traced; "
            "trace the network with inputs of this shape"
        )
    return program


def _steps(program: Program) -> list[tuple[str, str]]:
    return [(node.name, str(node.target)) for node in program.graph.nodes if node.op != "placeholder"]


def _current(graph: ChannelGraph, program: Program) -> Wiring:
    """The wiring with another program, its labels without what has been cut already."""
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
    reads = tuple(replace(read, labels=left(read.labels)) for read in wiring.reads)
    statistics = tuple(
        replace(
            item,
            arguments=tuple((place, value(argument)) for place, argument in item.arguments),
            result=value(item.result),
            sizes=tuple((place, within, left(labels)) for place, within, labels in item.sizes),
            factors=tuple((place, left(labels), power) for place, labels, power in item.factors),
        )
        for item in wiring.statistics
    )
    return replace(wiring, evaluation=Pass(program, reads, statistics))


def tensors_of(program: Program) -> dict[str, str]:
    """For each placeholder of a parameter or buffer, the tensor's qualified name."""
    return {name: item.name for name, item in program.placeholders.items() if item.origin is Origin.TENSOR}


def kept_mask(graph: ChannelGraph, removed: np.ndarray[Any, Any], tensor: str, dim: int) -> Tensor:
    """Positions along a tensor's dimension, in current numbering, that are not removed."""
    span = graph.span(tensor, dim)
    return torch.from_numpy(~removed[span][~graph.removed[span]])
