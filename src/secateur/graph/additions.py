"""Find sums of a value and something computed from it in a captured program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.fx import Node

from secateur.graph.capture.nodes import module_paths, operator_name
from secateur.graph.capture.operators import SHAPE_ONLY
from secateur.graph.capture.program import Program, base_of, written_arguments

_SUBTRACTS = ("aten.sub.Tensor", "aten.sub_.Tensor")

_ADDS = ("aten.add.Tensor", "aten.add_.Tensor", *_SUBTRACTS)

_SCALES = ("aten.mul.Tensor", "aten.div.Tensor")

_RECTIFIERS = ("aten.relu.default", "aten.relu_.default")
"""Operators that return a value without negative numbers as it is, and never return negative numbers."""

_KEEP_SIGNS = ("aten.max_pool", "aten.avg_pool", "aten.adaptive_avg_pool", "aten.adaptive_max_pool")
"""Operators that return no negative numbers if they read none."""

_DROPOUT = "aten.dropout."


@dataclass(frozen=True)
class Addition:
    """A value that is added to a value that it was computed from, or subtracted from it.

    Attributes:
        node: the operator that adds or subtracts.
        argument: position of the value among its arguments, 0 or 1.
        value: the operator that computes the value.
        stream: what it was computed from: the other operand, a part of it if that is a sum, or what is scaled
            in it.
        own: the operators that compute nothing but the value.
        scaled: whether the other operand is the stream times a fixed factor.
    """

    node: Node
    argument: int
    value: Node
    stream: Node
    own: frozenset[Node]
    scaled: bool = False

    @property
    def is_plain(self) -> bool:
        """Return whether nothing is left of the sum but the stream, if the value is left out."""
        return bool(self.node.kwargs.get("alpha", 1) == 1) and not (self.scaled or self.is_negated)

    @property
    def is_negated(self) -> bool:
        """Return whether the other operand is subtracted."""
        return str(self.node.target) in _SUBTRACTS and self.argument == 0


class Dataflow:
    """What is computed from what in a captured program, and in which module.

    Operators that return the tensor that they are given, such as a conversion to the dtype that it has, are
    skipped: a reader of the result counts as a reader of the argument. A program names the last of them where
    the code of the network still holds the tensor itself.

    Args:
        program: the captured forward pass.

    Attributes:
        nodes: its operators.
        inputs: for each operator, what it reads.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: Sequence[Node] = list(program.graph.nodes)
        self.inputs: dict[Node, tuple[Node, ...]] = {}
        self._same: dict[Node, Node] = {}
        self._users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        self._bits = {node: 1 << number for number, node in enumerate(self.nodes)}
        self._sources: dict[Node, int] = {}
        for node in self.nodes:
            self.inputs[node] = tuple(dict.fromkeys(self._same[item] for item in node.all_input_nodes))
            self._same[node] = self.inputs[node][0] if _returns_what_it_reads(node) else node
            self._sources[node] = 0
            reads = operator_name(node) not in SHAPE_ONLY
            for source in self.inputs[node]:
                self._users[source].append(node)
                if reads:
                    self._sources[node] |= self._sources[source] | self._bits[source]

    def depends(self, node: Node, source: Node) -> bool:
        """Return whether the numbers of a value are computed from those of another."""
        return bool(self._sources[node] & self._bits[source])

    def readers(self, node: Node) -> list[Node]:
        """List the operators that read a value and whose results are read."""
        return [user for user in self._users[node] if user not in self.effects]

    @cached_property
    def writes(self) -> list[tuple[Node, Node]]:
        """List the operators that write to a value other than a parameter or buffer, each with the value."""
        return [
            (node, base)
            for node in self.nodes
            for base in (self._same[base_of(item)] for item in written_arguments(node))
            if not self._is_tensor(base)
        ]

    @cached_property
    def effects(self) -> dict[Node, frozenset[Node]]:
        """Find the operators whose results nothing reads, and the values that they or their users write to.

        Parameters and buffers are left out of those values.
        """
        found: dict[Node, frozenset[Node]] = {}
        for node in reversed(self.nodes):
            users = self._users[node]
            if node.op == "call_function" and all(user in found for user in users):
                found[node] = frozenset(self._written[node]).union(*(found[user] for user in users))
        return found

    @cached_property
    def inside(self) -> dict[str, frozenset[Node]]:
        """Collect the operators of every module that is called, by its path."""
        nodes: dict[str, set[Node]] = {}
        for node in self.nodes:
            for path in module_paths(node) if self._same[node] is node else ():
                nodes.setdefault(path, set()).add(node)
        return {path: frozenset(found) for path, found in nodes.items()}

    def harmless_beside(self, nodes: Set[Node]) -> Set[Node]:
        """Add the operators that have no effect but on some operators to these."""
        return nodes | {node for node, written in self.effects.items() if written <= nodes}

    def without_effect_but(self, nodes: Set[Node]) -> Set[Node]:
        """Add the operators that read what some operators compute, and whose results nothing reads."""
        found = set(nodes)
        for node in self.nodes:
            if node in self.effects and not found.isdisjoint(self.inputs[node]):
                found.add(node)
        return found

    def unchanged_after(self, addition: Addition) -> frozenset[Node]:
        """Find the operators after a sum that return the other operand as it is if the value is zero.

        These are rectifiers, such as that at the end of a block of a ResNet, if the other operand has no
        negative numbers.
        """
        left, right = self._operands(addition.node)
        found: set[Node] = set()
        if not addition.is_negated and self._is_rectified(left if addition.argument == 1 else right):
            node = addition.node
            while len(readers := self.readers(node)) == 1 and str(readers[0].target) in _RECTIFIERS:
                (node,) = readers
                found.add(node)
        return frozenset(found)

    def drops_beside(self, path: str, own: Set[Node]) -> bool:
        """Return whether a module has a dropout of something else than what some operators compute.

        In evaluation mode a dropout returns what it reads, so it does not count as an operator of the module.
        """
        return any(
            str(node.target).startswith(_DROPOUT)
            and path in module_paths(node)
            and self._same[node] not in own
            for node in self.nodes
        )

    def _is_rectified(self, node: Node) -> bool:
        """Return whether a value has no negative numbers."""
        while str(node.target).startswith(_KEEP_SIGNS):
            node = self.inputs[node][0]
        return str(node.target) in _RECTIFIERS

    def additions(self) -> list[Addition]:
        """Find the values that are added to a value that they were computed from, with the help of weights.

        What is computed without weights belongs to a formula, such as that of an activation.

        Returns:
            The values in program order.
        """
        terms: dict[Node, tuple[Node, ...]] = {}
        found: list[Addition] = []
        for node in self.nodes:
            if not _adds(node):
                continue
            left, right = self._operands(node)
            parts = terms.get(left, (left,)), terms.get(right, (right,))
            terms[node] = (*parts[0], *parts[1])
            if str(node.target) not in _SUBTRACTS:  # a stream is not subtracted from its branch
                found += self._added(node, 0, (right, *parts[1]), terms)
            found += self._added(node, 1, (left, *parts[0]), terms)
        return [item for item in found if any(map(self._reads_tensor, item.own))]

    def _added(
        self, node: Node, argument: int, streams: Sequence[Node], terms: Mapping[Node, tuple[Node, ...]]
    ) -> list[Addition]:
        """Take an operand of a sum apart into values that are computed from what they are added to."""
        value = self._operands(node)[argument]
        stream = next((item for item in streams if self.depends(value, item)), None)
        scaled = stream is None
        if stream is None:
            sources = (self._unscaled(item) for item in streams)
            stream = next((item for item in sources if item is not None and self.depends(value, item)), None)
        if stream is None:
            return []
        if value in terms and self.readers(value) == [node]:
            left, right = (terms.get(item, (item,)) for item in self._operands(value))
            if not any(self.depends(one, two) or self.depends(two, one) for one in left for two in right):
                # Two values that were added first: each is a branch.
                return [item for place in (0, 1) for item in self._added(value, place, streams, terms)]
        return [Addition(node, argument, value, stream, self._own(node, value), scaled)]

    def _unscaled(self, node: Node) -> Node | None:
        """Find the value that is multiplied by a number, or by a parameter for all or for each channel."""
        if str(node.target) not in _SCALES:
            return None
        value, factor = node.args[:2]
        if isinstance(factor, Node) and not self._is_gain(factor):
            value, factor = factor, value
        if not isinstance(value, Node) or (isinstance(factor, Node) and not self._is_gain(factor)):
            return None
        return None if shape_of(value) != shape_of(node) else self._same[value]

    def _is_gain(self, node: Node) -> bool:
        """Return whether a node stands for a parameter or buffer with at most one dimension of several."""
        return self._is_tensor(node) and sum(size > 1 for size in shape_of(node) or ()) <= 1

    def _own(self, node: Node, value: Node) -> frozenset[Node]:
        """Find the operators all of whose results end in one operand of a sum."""
        own: set[Node] = set()
        if self.readers(value) == [node] and self._operands(node).count(value) == 1:
            outside: set[Node] = set()
            own = self._cone(value, outside)
            # What writes to a value that others read does something besides computing the branch.
            while writing := {item for item in own if not own.issuperset(self._written_after(item))}:
                outside |= writing
                own = self._cone(value, outside)
        return frozenset(own)

    def _cone(self, value: Node, outside: Collection[Node]) -> set[Node]:
        """Find the operators that compute a value and nothing else, none of those given."""
        cone: set[Node] = set()
        known: Counter[Node] = Counter()
        pending = [value]
        while pending:
            found = pending.pop()
            if found.op != "call_function" or found in outside:
                continue
            cone.add(found)
            for source in self.inputs[found]:
                known[source] += 1
                if known[source] == len(self.readers(source)):
                    pending.append(source)
        return cone

    def _operands(self, addition: Node) -> tuple[Node, Node]:
        left, right = addition.args[:2]
        return self._same[left], self._same[right]  # type: ignore[index]

    @cached_property
    def _written(self) -> dict[Node, list[Node]]:
        """List, for each operator, the values other than parameters and buffers that it writes to."""
        found: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node, base in self.writes:
            found[node].append(base)
        return found

    def _written_after(self, node: Node) -> Iterator[Node]:
        """Find what an operator, or what has no other effect, writes to."""
        yield from self._written[node]
        for user in self._users[node]:
            yield from self.effects.get(user, ())

    def _reads_tensor(self, node: Node) -> bool:
        return any(map(self._is_tensor, self.inputs[node]))

    def _is_tensor(self, node: Node) -> bool:
        """Return whether a node stands for a parameter or buffer."""
        return node.name in self.program.tensor_names


def _adds(node: Node) -> bool:
    """Return whether an operator adds two tensors of the shape of its result."""
    if str(node.target) not in _ADDS or not all(isinstance(item, Node) for item in node.args[:2]):
        return False
    shapes = {shape_of(item) for item in (node, *node.args[:2])}  # type: ignore[arg-type]
    return len(shapes) == 1 and None not in shapes


def _returns_what_it_reads(node: Node) -> bool:
    """Return whether an operator returns the tensor that it is given, divides it by one or adds zero."""
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    target = str(node.target)
    if target.startswith(_DROPOUT):
        return node.args[2] is False
    if not (target.startswith(("aten.to.", "aten.contiguous.")) or _keeps_numbers(node)):
        return False
    before, after = (item.meta.get("val") for item in (node.args[0], node))  # type: ignore[union-attr]
    copied = node.kwargs.get("copy") or any(item is True for item in node.args)  # 1.0 equals True
    return before.dtype == after.dtype and not copied  # type: ignore[union-attr]


def _keeps_numbers(node: Node) -> bool:
    """Return whether an operator divides or multiplies by one, or adds zero, as ``sum`` does first."""
    neutral = {"aten.div.Tensor": 1, "aten.mul.Tensor": 1, "aten.add.Tensor": 0}.get(str(node.target))
    return neutral is not None and isinstance(node.args[1], int | float) and node.args[1] == neutral


def shape_of(node: Node) -> tuple[int, ...] | None:
    """Return the shape of a value, ``None`` if it is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None
