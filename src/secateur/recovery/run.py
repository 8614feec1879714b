"""Runs: a script played step by step, with some channels masked and some weights changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from secateur._compat import tree_leaves, tree_map_only
from secateur.graph.capture import Origin
from secateur.graph.masked import MaskedInterpreter, Removed
from secateur.recovery.abreast import AbreastInterpreter
from secateur.recovery.narrow import NarrowInterpreter
from secateur.recovery.script import Portion, Script

Values = dict[Node, Any]
"""What is known at one point of the forward pass: the values that later steps still need."""


class Run:
    """One network on its way through a script: all portions in use stand before the same step.

    Only values that are needed later are held, so memory is that of one place of the network, not of
    all of it. Where even that is too much, only the first portions are used; those that join them later
    come from the beginning.

    Args:
        script: the forward pass and the examples.
        removed: per slot, whether its channel is masked; or one such row for each of several copies
            of the examples that lie behind each other in every portion.
        tensors: parameters and buffers by name; looked up at each step, so they may be changed
            on the way.
    """

    def __init__(self, script: Script, removed: Removed, tensors: Mapping[str, Tensor]) -> None:
        self.script = script
        self.removed = removed
        self.tensors = tensors
        self.at = 0
        self._interpreter = _interpreter(script, removed)
        self._values: list[Values] = []

    @property
    def portions(self) -> tuple[Portion, ...]:
        """The portions in use."""
        return self.script.portions[: len(self._values)]

    def value(self, portion: int, node: Node) -> Any:
        """A value that the current step or a later one needs."""
        return self._values[portion][node]

    def holds(self, node: Node) -> bool:
        """Whether a value is known and needed at the current step or later."""
        return node in self._values[0]

    def advance(self, stop: int, portions: int | None = None) -> None:
        """Runs portions up to, but without, a step.

        Args:
            stop: the step.
            portions: how many portions are used from now on; all by default.
        """
        count = len(self.script.portions) if portions is None else portions
        del self._values[count:]
        with torch.no_grad():
            for values in self._values:
                self._play(values, self.at, stop)
            for portion in self.script.portions[len(self._values) : count]:
                self._values.append(self._begin(portion))
                self._play(self._values[-1], 0, max(self.at, stop))
        self.at = max(self.at, stop)

    def outputs(self, portions: int | None = None) -> Tensor:
        """Runs to the end.

        Args:
            portions: how many portions are used; all by default.

        Returns:
            The first output, for all examples of these portions, shape ``(examples, ...)``.
        """
        final = len(self.script.nodes) - 1
        self.advance(final, portions)
        results = []
        for portion, values in zip(self.portions, self._values, strict=True):
            arguments = [values.get(item, item) for item in tree_leaves(self.script.nodes[final].args)]
            first = next(item for item in arguments if isinstance(item, Tensor))
            results.append(self.script.trimmed(first, portion))
        return torch.cat(results, 1 if self.script.copies > 1 else 0)

    def fork(self, removed: Removed, tensors: Mapping[str, Tensor]) -> Run:
        """Another network that stands at the same step with the same values.

        Args:
            removed: what it masks; must not matter before this step.
            tensors: its parameters and buffers; must not differ before this step.
        """
        other = Run.__new__(Run)
        other.script, other.removed, other.tensors, other.at = self.script, removed, tensors, self.at
        other._interpreter = _interpreter(self.script, removed)
        # Operators that work in place must not reach the values of this run.
        copied: dict[int, Tensor] = {}
        other._values = [
            {
                node: tree_map_only(Tensor, lambda leaf: copied.setdefault(id(leaf), leaf.clone()), value)
                for node, value in values.items()
            }
            for values in self._values
        ]
        return other

    def _begin(self, portion: Portion) -> Values:
        program = self.script.program
        leaves = iter(portion.leaves)
        values: Values = {}
        for node in program.graph.nodes:
            if node.op != "placeholder":
                continue
            item = program.placeholders[node.name]
            if item.origin is Origin.CONSTANT:
                values[node] = program.constants[item.name]
            elif item.origin is Origin.INPUT:
                values[node] = next(leaves)
        # The program must not change the caller's batches, nor the captured constants.
        return tree_map_only(Tensor, torch.clone, values)  # type: ignore[no-any-return]

    def _play(self, values: Values, start: int, stop: int) -> None:
        interpreter, last = self._interpreter, self.script.last
        interpreter.env = values
        for index in range(start, stop):
            node = self.script.nodes[index]
            sources = node.all_input_nodes
            lent = self._lend(values, sources)
            values[node] = interpreter.run_node(node)
            for source in lent:
                del values[source]
            for source in (*sources, node):
                if last[source] <= index:
                    values.pop(source, None)

    def _lend(self, values: Values, sources: list[Node]) -> list[Node]:
        """Puts the parameters and buffers that a step reads among the values; they are taken out again."""
        placeholders = self.script.program.placeholders
        lent = []
        for source in sources:
            if source.op == "placeholder" and placeholders[source.name].origin is Origin.TENSOR:
                name = placeholders[source.name].name
                data = self.tensors[name]
                values[source] = data.clone() if name in self.script.program.written else data
                lent.append(source)
        return lent


def _interpreter(script: Script, removed: Removed) -> MaskedInterpreter:
    if removed.ndim > 1:
        return AbreastInterpreter(script.wiring.evaluation, removed)
    return NarrowInterpreter(script, removed)
