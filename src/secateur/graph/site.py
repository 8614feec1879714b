"""A site: one operator of the program, as a rule sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import Node

from secateur.graph.capture import module_path
from secateur.graph.groups import IntArray, Role
from secateur.graph.labels import Labels, SlotTable, Value


@dataclass(frozen=True)
class Read:
    """An operator contracts over channels: its argument's dimension is where silence is felt."""

    node: str
    argument: int
    dim: int
    labels: IntArray
    module: str
    tensor: str


@dataclass(frozen=True)
class Statistic:
    """An operator takes a statistic over channels: it must only see the kept ones."""

    node: str
    arguments: tuple[tuple[int, Value], ...]
    result: Value
    sizes: tuple[tuple[int, int | None, IntArray], ...] = ()
    """Arguments (and the place in them, if they are lists) that count kept labels."""


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one operator: a coefficient times the sizes of dimensions."""

    node: str
    module: str
    coefficient: int
    extents: tuple[IntArray, ...]


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module that equals the number of kept labels of a vector."""

    module: str
    name: str
    index: int | None
    labels: IntArray


@dataclass
class Notes:
    """What a walk finds besides equalities."""

    reads: list[Read] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)


class Site:
    """One operator: its arguments by name, its place in the network, and what a rule may say of it.

    Args:
        node: the operator in the captured program.
        env: values of the nodes before it.
        slots: the table that collects equalities.
        notes: where reads, work and attributes are collected.
        modules: the modules of the network by path.
        choices: for operators that split a rectangle, the axis to leave free, by node name.
    """

    def __init__(
        self,
        node: Node,
        env: Mapping[Node, Any],
        slots: SlotTable,
        notes: Notes,
        modules: Mapping[str, nn.Module],
        choices: Mapping[str, int],
    ) -> None:
        self.node = node
        self.slots = slots
        self.module = module_path(node)
        self._env = env
        self._notes = notes
        self._modules = modules
        self._choices = choices
        self._names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
        self._arguments = {**defaults, **dict(zip(self._names, node.args, strict=False)), **node.kwargs}

    # -- arguments and results -------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the operator has an argument of this name that is not ``None``."""
        return self._arguments.get(name) is not None

    def option(self, name: str) -> Any:
        """The value of an argument that is not a tensor."""
        return self._arguments[name]

    def value(self, name: str) -> Value:
        """The value of a tensor argument; a number counts as a value without dimensions."""
        return self._value(self._arguments[name])

    def values(self, name: str) -> list[Value]:
        """The values of an argument that is a list of tensors."""
        return [self._value(item) for item in self._arguments[name]]

    def first(self) -> Value:
        """The value of the first argument."""
        return self.value(self._names[0])

    def tensors(self) -> list[Value]:
        """The values of all tensor arguments, lists included, in order."""
        return [self._value(node) for node in self.node.all_input_nodes if self._is_value(node)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        result = self.node.meta["val"]
        return tuple((result if isinstance(result, Tensor) else result[0]).shape)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all results of an operator with several."""
        return [tuple(item.shape) for item in self.node.meta["val"]]

    @property
    def operator(self) -> str:
        """Short name of the operator, for messages."""
        return str(self.node.target).removeprefix("aten.").partition(".")[0]

    @property
    def place(self) -> str:
        """The operator and its module, for messages."""
        return f"{self.operator} in '{self.module}'" if self.module else self.operator

    # -- what a rule may say ---------------------------------------------------------------

    def join(self, left: Labels, right: Labels, why: str = "") -> Labels:
        """Demands that two label vectors are equal; one without labels freezes the other.

        Returns:
            The labels to go on with.
        """
        if left is None and right is None:
            return None
        if left is None or right is None:
            reason = why or f"meets values without channels ({self.place})"
            self.freeze(left if right is None else right, reason)
            return None
        self.slots.join(left, right)
        return left

    def freeze(self, labels: Labels, reason: str) -> None:
        """Forbids the removal of these channels."""
        if labels is not None:
            self.slots.freeze(labels, reason)

    def claim(self, labels: Labels, role: Role) -> None:
        """Says what a parameter's dimension does with its channels."""
        if labels is not None:
            self.slots.claim(labels, role)

    def carry(self, name: str, labels: Labels, dim: int = 0) -> None:
        """Joins a parameter with one number per channel (a bias, a scale) to the channels."""
        if self.has(name):
            own = self.value(name).labels[dim]
            self.claim(own, Role.CARRIER)
            self.join(own, labels, f"reads values that are not channels ({self.place})")

    def read(self, name: str, dim: int, labels: Labels, weight: str = "") -> None:
        """Notes that the operator contracts over the channels in a dimension of an argument."""
        if labels is None:
            return
        argument = self._names.index(name)
        tensor = self._arguments[weight].name if weight else ""
        self._notes.reads.append(Read(self.node.name, argument, dim, labels, self.module, tensor))

    def statistic(self, result: Value, *sizes: tuple[int, int | None, IntArray]) -> Value:
        """Notes that the operator's result depends on all channels of its arguments at once.

        Args:
            result: the labels of the result.
            sizes: integer arguments that equal the number of kept labels of a vector: position of
                the argument, place within it if it is a list, and the vector.
        """
        arguments = tuple(
            (index, self._value(node))
            for index, node in enumerate(self.node.args)
            if isinstance(node, Node) and self._is_value(node)
        )
        self._notes.statistics.append(Statistic(self.node.name, arguments, result, sizes))
        return result

    def work(self, coefficient: int, *extents: Labels | int) -> None:
        """Adds multiply-accumulates: the coefficient times every size or labelled dimension."""
        labelled = []
        for extent in extents:
            if isinstance(extent, np.ndarray):
                labelled.append(extent)
            elif extent is not None:
                coefficient *= int(extent)
        self._notes.work.append(Work(self.node.name, self.module, coefficient, tuple(labelled)))

    def attribute(self, name: str, labels: Labels, index: int | None = None) -> bool:
        """Ties an integer attribute of the module that runs the operator to a label vector.

        Returns:
            Whether the module has such an attribute with the value that fits.
        """
        current = getattr(self._modules.get(self.module), name, None)
        if index is not None and isinstance(current, Sequence | tuple) and len(current) > index:
            current = current[index]
        if labels is None or type(current) is not int or current != len(labels):
            return False
        self._notes.attributes.append(Attribute(self.module, name, index, labels))
        return True

    def attribute_with_value(self, labels: IntArray, used: Sequence[str] = ()) -> str | None:
        """Ties the first integer attribute of the module whose value is the number of labels.

        Args:
            labels: the label vector.
            used: attributes that are already taken.

        Returns:
            The attribute's name, ``None`` if there is none.
        """
        for name, value in vars(self._modules.get(self.module, nn.Module())).items():
            if name not in used and type(value) is int and value == len(labels):
                self.attribute(name, labels)
                return name
        return None

    def choose(self, units: Sequence[int]) -> int:
        """The axis of a rectangle that stays free: the one with most units, unless told otherwise."""
        chosen = self._choices.get(self.node.name)
        return int(np.argmax(units)) if chosen is None else chosen

    # -- inside ----------------------------------------------------------------------------

    def _is_value(self, node: Node) -> bool:
        return isinstance(self._env.get(node), Value)

    def _value(self, item: Any) -> Value:
        if isinstance(item, Node):
            found = self._env[item]
            if isinstance(found, Value):
                return found
        return Value.plain(())
