"""Find when the values of a program are alive, for any choice of residual branches that are present."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.fx import Node

from secateur.graph.branches import ResidualBranch, Substitute
from secateur.graph.capture.nodes import module_calls, module_paths, operator_name
from secateur.graph.capture.operators import DROPOUTS
from secateur.graph.capture.program import Origin, Program
from secateur.graph.conditions import ALWAYS, NEVER, Condition, all_present, both, either, is_absent, opposite

_LONGEST_CHAIN = 3
"""Absent branches in a row that pass on a value which is also used later; beyond that, it counts twice."""


@dataclass(frozen=True)
class Alive:
    """A value in memory, and where it is alive under one condition.

    Attributes:
        node: the operator whose result has the value's sizes.
        first: step of the program from which it is alive.
        last: the last step at which it is alive.
        condition: what branches must be present or absent for that.
        broadcast: dimensions of which one position is stored.
    """

    node: Node
    first: int
    last: int
    condition: Condition
    broadcast: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Memory:
    """Memory that an operator, or what takes its place, allocates.

    Attributes:
        node: the operator.
        sizes: the operator whose result has its sizes.
        exists: the condition under which it is allocated.
        alias: the value whose memory it is unless that is no longer alive: what a removed branch passes on.
        broadcast: dimensions of which one position is stored.
    """

    node: Node
    sizes: Node
    exists: Condition = ALWAYS
    alias: Node | None = None
    broadcast: tuple[int, ...] = ()


@dataclass(frozen=True)
class _SubstituteMemory:
    """What takes the place of a module of an absent branch.

    Attributes:
        memory: of what it returns.
        branch: index of the branch.
        inside: the operators of the module.
        around: the module calls in which the module is called, from the outside in.
    """

    memory: _Memory
    branch: int
    inside: frozenset[Node]
    around: Mapping[str, str]

    def stands_for(self, memories: Sequence[_Memory]) -> bool:
        """Return whether it takes exactly the memory of the result that it replaces."""
        item = self.memory
        replaces = item.alias is None and not item.broadcast and item.sizes is item.node
        return replaces and all(memory.node in self.inside for memory in memories)


class Lifetimes:
    """When the values of a program are alive.

    The caller holds the inputs throughout, and code that calls a module holds the arguments until the
    module returns. Where a branch is absent, its operators do not run. What takes the place of its modules
    returns zeros, or an argument; operators between them still run.

    Args:
        program: the captured forward pass.
        branches: the residual branches of the network.

    Attributes:
        nodes: the steps of the program.

    Example:
        A block computes ``x + f(x)`` between two layers. Without the branch, it passes the result of the
        first layer on, which is then alive in place of the sum, until the last layer has read it.

        >>> import torch
        >>> from torch import nn
        >>> from secateur.graph import trace
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f = nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return x + self.f(x)
        >>> graph = trace(nn.Sequential(nn.Linear(3, 4), Block(), nn.Linear(4, 2)), torch.ones(2, 3))
        >>> lifetimes = Lifetimes(graph.wiring.program, graph.wiring.branches)
        >>> [node.name for node in lifetimes.nodes[7:11]]
        ['linear', 'linear_1', 'add', 'linear_2']
        >>> for item in lifetimes.values():
        ...     if item.first > 8 and item.condition != ALWAYS:
        ...         print(item.node, f"{item.first}-{item.last}", [sorted(case) for case in item.condition])
        linear_1 9-9 [[(0, True)]]
        add 10-10 [[(0, True)]]
        linear 9-9 [[(0, False)]]
        linear 10-10 [[(0, False)]]
    """

    def __init__(self, program: Program, branches: Sequence[ResidualBranch]) -> None:
        self._program = program
        self._branches = {number: branch for number, branch in enumerate(branches) if branch.prunable}
        self.nodes: Sequence[Node] = list(program.graph.nodes)
        self._step = {node: step for step, node in enumerate(self.nodes)}
        self._named = {node.name: node for node in self.nodes}
        self._of: dict[str, list[int]] = {}
        for number, branch in self._branches.items():
            for name in branch.nodes:
                self._of.setdefault(name, []).append(number)

    @cached_property
    def runs(self) -> list[Condition]:
        """Return, per step, the condition under which the step or its substitute allocates memory."""
        conditions = [all_present(self._of.get(node.name, ())) for node in self.nodes]
        for node, item in self._substitutes.items():
            if item.memory.alias is None:
                around = (number for number in self._of[node.name] if number != item.branch)
                conditions[self._step[node]] = all_present(around)
        return conditions

    def values(self) -> Iterator[Alive]:
        """Yield all values, with the steps at which they are alive."""
        uses = self._uses
        for memory in uses:
            start, known = self._step[memory.node], NEVER
            yield Alive(memory.sizes, start, start, memory.exists, memory.broadcast)
            found = sorted(uses[memory], key=lambda use: -use[0])
            for place, (last, condition) in enumerate(found):
                known = either(known, condition)
                first = found[place + 1][0] + 1 if place + 1 < len(found) else start + 1
                if first <= last:
                    yield from self._alive(memory, max(first, start + 1), last, both(known, memory.exists))

    def _alive(self, memory: _Memory, first: int, last: int, condition: Condition) -> Iterator[Alive]:
        """Skip the steps at which the aliased value itself is alive."""
        if memory.alias is None:
            if condition:
                yield Alive(memory.sizes, first, last, condition, memory.broadcast)
            return
        for step in range(first, last + 1):
            rest = both(condition, opposite(self._held(memory.alias, step, _LONGEST_CHAIN)))
            if rest:
                yield Alive(memory.sizes, step, step, rest)

    def _held(self, node: Node, step: int, chain: int) -> Condition:
        """Find the condition that a result is still held at a step, itself or through ``chain`` operators."""
        cases = []
        for memory, case in self._memories[node]:
            cases += [both(case, use) for until, use in self._uses[memory] if until >= step]
            if memory.alias is not None and chain:
                cases.append(both(case, self._held(memory.alias, step, chain - 1)))
        return either(*cases)

    @cached_property
    def _uses(self) -> dict[_Memory, list[tuple[int, Condition]]]:
        """Find, for each memory, until which steps it is held, and under which conditions."""
        found: dict[_Memory, list[tuple[int, Condition]]] = {}
        returns = _returns(self.nodes)
        for node, memories in self._memories.items():
            for memory, _ in memories:
                found.setdefault(memory, [])
                if node.op == "placeholder":
                    found[memory].append((len(self.nodes) - 1, ALWAYS))
        for node, item in self._substitutes.items():
            if item.memory.alias is not None:
                # The code around the module that passes a value on holds it as an argument.
                entered = item.around.keys() - module_calls(item.memory.alias).keys()
                held = max([self._step[node], *(returns[self._step[node]][call] for call in entered)])
                for memory, case in self._memories[item.memory.alias]:
                    found[memory].append((held, both(case, item.memory.exists)))
        for step, node in enumerate(self.nodes):
            runs = all_present(self._of.get(node.name, ()))
            for source in node.all_input_nodes:
                if source in self._memories:
                    entered = module_calls(node).keys() - module_calls(source).keys()
                    held = max([step, *(returns[step][call] for call in entered)])
                    for memory, case in self._memories[source]:
                        found[memory].append((held, both(case, runs)))
        return {memory: _merged(uses) for memory, uses in found.items()}

    @cached_property
    def _memories(self) -> dict[Node, list[tuple[_Memory, Condition]]]:
        """Find, per result, the memories that it may live in, with conditions; parameters are left out."""
        found: dict[Node, list[tuple[_Memory, Condition]]] = {}
        for node in self.nodes:
            if node.op == "placeholder":
                if self._program.placeholders[node.name].origin is Origin.INPUT:
                    found[node] = [(_Memory(node, node), ALWAYS)]
            elif node.op == "call_function":
                source = _shared(node)
                found[node] = found[source] if source in found else self._own(node)
                item = self._substitutes.get(node)
                if item is not None and not item.stands_for([memory for memory, _ in found[node]]):
                    there = all_present([item.branch])
                    kept = [(memory, both(case, there)) for memory, case in found[node]]
                    found[node] = [*kept, (item.memory, item.memory.exists)]
        return found

    def _own(self, node: Node) -> list[tuple[_Memory, Condition]]:
        """Make the memory that an operator allocates.

        An operator between the modules of an absent branch computes values of the stream's sizes.
        """
        for number, branch in self._branches.items():
            if node.name in branch.remaining:
                stream = self._named[branch.stream]
                if _differs_in_width(node, stream):
                    absent, present = is_absent(number), all_present([number])
                    return [
                        (_Memory(node, node, present), present),
                        (_Memory(node, stream, absent), absent),
                    ]
        return [(_Memory(node, node), ALWAYS)]

    @cached_property
    def _substitutes(self) -> dict[Node, _SubstituteMemory]:
        """Find what takes the place of each result of a module that an absent branch loses."""
        found: dict[Node, _SubstituteMemory] = {}
        for number, branch in self._branches.items():
            nodes = [self._named[name] for name in branch.nodes]
            for item in branch.replacements:
                inside = frozenset(node for node in nodes if item.path in module_paths(node))
                results = [node for node in nodes if node in inside and not set(node.users) <= inside]
                if not results:
                    continue
                node, stream = results[-1], self._named[branch.stream]
                passes = item.substitute is Substitute.PASS
                memory = _Memory(
                    node,
                    stream if passes else node,
                    is_absent(number),
                    stream if passes and not item.copied else None,
                    item.single,
                )
                around = {
                    call: path
                    for call, path in module_calls(node).items()
                    if not f"{path}.".startswith(f"{item.path}.")
                }
                found[node] = _SubstituteMemory(memory, number, inside, around)
        return found


def _merged(uses: Sequence[tuple[int, Condition]]) -> list[tuple[int, Condition]]:
    """Join uses that end at the same step."""
    found: dict[int, Condition] = {}
    for held, condition in uses:
        found[held] = either(found.get(held, NEVER), condition)
    return list(found.items())


def _returns(nodes: Sequence[Node]) -> list[dict[str, int]]:
    """Find, for each step, the last step of each module call that it is part of."""
    returns: list[dict[str, int]] = [{} for _ in nodes]
    for step in range(len(nodes) - 1, -1, -1):
        later = returns[step + 1] if step + 1 < len(nodes) else {}
        returns[step] = {call: later.get(call, step) for call in module_calls(nodes[step])}
    return returns


def _shared(node: Node) -> Node | None:
    """Return the value whose memory a result lives in, if an operator returns its first argument's memory."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    name = operator_name(node)
    if not name or name in DROPOUTS:
        return source
    returns = node.target._schema.returns  # type: ignore[union-attr]
    return source if any(item.alias_info is not None for item in returns) else None


def _differs_in_width(node: Node, stream: Node) -> bool:
    """Return whether a result has the sizes of the stream in all dimensions but one."""
    one, other = node.meta.get("val"), stream.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.dim() != other.dim():
        return False
    return sum(size != wide for size, wide in zip(one.shape, other.shape, strict=True)) == 1
