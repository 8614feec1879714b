"""Give a rule what it may read of an operator, and what it may say about channels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import Node

from secateur.graph.capture.nodes import (
    draws_numbers,
    module_path,
    named_arguments,
    operator_name,
    operator_place,
)
from secateur.graph.capture.operators import FILLED, SHAPE_ONLY
from secateur.graph.groups import IntArray, Role
from secateur.graph.labels import Labels, SlotTable, Value
from secateur.graph.propagation.constants import is_unregistered, makers
from secateur.graph.propagation.findings import Attribute, Findings, Hints, OperatorMacs, Read, Statistic


class OperatorContext:
    """One operator: its arguments by name, its place in the network, and what a rule may say of it.

    Args:
        node: the operator in the captured program.
        env: values of the nodes before it.
        slots: the table that collects equalities.
        findings: where reads, work and attributes are collected.
        modules: the modules of the network by path.
        hints: axes to leave free, and where sizes come from.
    """

    def __init__(
        self,
        node: Node,
        env: MutableMapping[Node, Any],
        slots: SlotTable,
        findings: Findings,
        modules: Mapping[str, nn.Module],
        hints: Hints,
    ) -> None:
        self.node = node
        self.slots = slots
        self.module = module_path(node)
        self._env = env
        self._findings = findings
        self._modules = modules
        self._hints = hints
        self._arguments = {name: _settled(value) for name, value in named_arguments(node).items()}
        self._names = list(self._arguments)

    def has(self, name: str) -> bool:
        """Return whether the operator has an argument of this name that is not ``None``."""
        return self._arguments.get(name) is not None

    def option(self, name: str) -> Any:
        """Return the value of an argument that is not a tensor."""
        return self._arguments[name]

    def option_or(self, name: str, default: Any) -> Any:
        """Return the value of an argument that is not a tensor, or a default if there is no such argument."""
        return self._arguments.get(name, default)

    def value(self, name: str) -> Value:
        """Return the value of a tensor argument; a number counts as a value without dimensions."""
        return self._value(self._arguments[name])

    def values(self, name: str) -> list[Value]:
        """Return the values of an argument that is a list of tensors."""
        return [self._value(item) for item in self._arguments[name]]

    def strides(self, name: str) -> tuple[int, ...]:
        """Return the strides of a tensor argument, as the original network has them."""
        tensor: Tensor = self._arguments[name].meta["val"]
        return tensor.stride()

    def first(self) -> Value:
        """Return the value of the first argument."""
        return self.value(self._names[0])

    def tensors(self) -> list[Value]:
        """Return the values of all tensor arguments, lists included, in order."""
        return [self._value(node) for node in self.node.all_input_nodes if self._is_value(node)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the (first) result."""
        result = self.node.meta["val"]
        return tuple((result if isinstance(result, Tensor) else result[0]).shape)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of all results of an operator with several."""
        return [tuple(item.shape) for item in self.node.meta["val"]]

    @property
    def operator(self) -> str:
        """Return the short name of the operator, for messages."""
        return operator_name(self.node)

    @property
    def place(self) -> str:
        """Name the operator and its module, for messages."""
        return operator_place(self.node)

    @property
    def unlabelled_reason(self) -> str:
        """Return the message for channels that meet a value without channels."""
        if any(is_unregistered(node, self._hints.constants) for node in self.node.all_input_nodes):
            return f"meets a tensor that is no parameter or buffer ({self.place}); keep it by register_buffer"
        made = next((operator_name(node) for node in self.node.all_input_nodes if _is_made(node)), "")
        hint = f"; {made} gets a number as size: write a size that follows, such as x.shape[1] (no len(...))"
        return f"meets values without channels ({self.place}){hint if made else ''}"

    def join(self, left: Labels, right: Labels, why: str = "") -> Labels:
        """Demand that two label vectors are equal; one without labels freezes the other.

        Returns:
            The labels of the result.
        """
        if left is None and right is None:
            return None
        if left is None or right is None:
            self.freeze(left if right is None else right, why or self.unlabelled_reason)
            return None
        self.slots.join(left, right)
        if len(left):
            self._findings.axes.join(int(left[0]), int(right[0]))
        axes = self._hints.open_axes
        return right if axes is not None and axes.is_open(right) and not axes.is_open(left) else left

    def freeze(self, labels: Labels, reason: str) -> None:
        """Forbid the removal of these channels; a result that nothing reads forbids nothing.

        Code often picks an element for its shape alone. Whether it runs on other widths shows in the trial.
        """
        if labels is not None and self.node.name not in self._hints.unread:
            self.slots.freeze(labels, reason)
            self._findings.axes.reject(self.node.name, labels, own=True)

    def set_role(self, labels: Labels, role: Role) -> None:
        """Record what a parameter's dimension does with its channels."""
        if labels is not None:
            self.slots.set_role(labels, role)

    def tie_parameter(self, name: str, labels: Labels, dim: int = 0) -> None:
        """Join a parameter with one number per channel (a bias, a scale) to the channels."""
        if self.has(name):
            own = self.value(name).labels[dim]
            self.set_role(own, Role.CARRIER)
            self.join(own, labels, f"reads values that are not channels ({self.place})")

    def rank(self, dim: int, labels: Labels, count: int, *, largest: bool) -> Labels:
        """Record that the operator picks channels of its first argument by value.

        Args:
            dim: the dimension in which they are ranked.
            labels: its channels.
            count: how many are picked; as many must stay.
            largest: whether the largest are picked, not the smallest.

        Returns:
            The channels whose indices the operator returns; ``None`` if all are picked, which freezes them.
        """
        if labels is None or count >= len(labels):
            self.freeze(labels, f"ranked by value ({self.place})")
            return None
        fill = -math.inf if largest else math.inf
        name = self.node.name
        self._findings.reads.append(Read(name, 0, dim, labels, self.module, "", fill=fill, least=count))
        return labels

    def read(self, name: str, dim: int, labels: Labels, weight: str = "") -> None:
        """Record that the operator contracts over the channels in a dimension of an argument."""
        if labels is None:
            return
        argument = self._names.index(name)
        tensor = self._tensor_name(weight) if weight else ""
        self._findings.reads.append(Read(self.node.name, argument, dim, labels, self.module, tensor))

    def statistic(self, result: Value, *sizes: tuple[int, int | None, IntArray]) -> Value:
        """Record that the operator's result depends on all channels of its arguments at once.

        Args:
            result: the labels of the result.
            sizes: integer arguments that equal the number of kept labels of a vector: position of
                the argument, place within it if it is a list, and the vector.
        """
        if self.node.name in self._hints.weights:
            return self._statistic_of_weights(result)
        arguments = tuple(
            (index, self._value(node))
            for index, node in enumerate(self.node.args)
            if isinstance(node, Node) and self._is_value(node)
        )
        self._findings.statistics.append(Statistic(self.node.name, arguments, result, sizes))
        return result

    def statistic_along(self, name: str, dims: Collection[int]) -> None:
        """Mark a statistic over some dimensions of one argument, for operators with any number of results.

        The other dimensions are computed index by index, so the results keep their full shapes.

        Args:
            name: the argument, a tensor.
            dims: the dimensions that are reduced, counted from the front.
        """
        value = self.value(name)
        labels = tuple(own if dim in dims else None for dim, own in enumerate(value.labels))
        if any(own is not None for own in labels):
            argument = (self._names.index(name), Value(value.shape, labels))
            self._findings.statistics.append(Statistic(self.node.name, (argument,), Value.plain(()), ()))

    def adopt(self, name: str, dim: int, labels: Labels, place: int | None = None) -> Labels:
        """Label a constant argument with the channels of another one; the trial cut has to check it.

        Args:
            name: the argument that may be a constant.
            dim: its dimension, which may be counted from the end.
            labels: the channels that it meets there.
            place: which tensor, where the argument is a list of them.

        Returns:
            The labels of the dimension, ``None`` if it has none and cannot take these.
        """
        node = self._arguments[name] if place is None else self._arguments[name][place]
        value = self._value(node)
        own = value.labels[dim]
        fits = labels is not None and value.shape[dim] == len(labels) > 1
        made = makers(node, dim % len(value.shape), self._env) if own is None and fits else []
        if not made or not self.assume():
            return own
        for maker in made:
            self._env[maker] = self._value(maker).replaced(dim % len(value.shape), labels)
        return labels

    def attribute(self, name: str, labels: Labels, index: int | None = None) -> bool:
        """Tie an integer attribute of the module that runs the operator to a label vector.

        Returns:
            Whether the module has such an attribute with the value that fits.
        """
        current = getattr(self._modules.get(self.module), name, None)
        if index is not None and isinstance(current, Sequence | tuple) and len(current) > index:
            current = current[index]
        if labels is None or type(current) is not int or current != len(labels):
            return False
        self._findings.attributes.append(Attribute(self.module, name, index, labels))
        return True

    def add_macs(self, coefficient: int, *extents: IntArray | int) -> None:
        """Add multiply-accumulates: the coefficient times every size or labelled dimension.

        Args:
            coefficient: what the product is multiplied with.
            extents: the dimensions, as :attr:`Value.extents` gives them.
        """
        labelled = []
        for extent in extents:
            if isinstance(extent, np.ndarray):
                labelled.append(extent)
            else:
                coefficient *= int(extent)
        self._findings.work.append(OperatorMacs(self.node.name, self.module, coefficient, tuple(labelled)))

    def assume(self) -> bool:
        """Assume that numbers in the code follow the widths; return whether no trial cut showed otherwise."""
        if self.node.name in self._hints.refused:
            return False
        self._findings.assumptions.add(self.node.name)
        return True

    def _statistic_of_weights(self, result: Value) -> Value:
        """Freeze what a statistic of weights is taken over: without some of it, it is another number."""
        kept = {id(labels) for labels in result.labels if labels is not None}
        same = [value.shape for value in self.tensors()] == [result.shape]
        for value in self.tensors():
            for labels in value.labels:
                if labels is not None and (same or id(labels) not in kept):
                    found = f"{self._fixed_kind()} is computed"
                    self.freeze(labels, f"{found} with a statistic over these channels ({self.place})")
        return result

    def _fixed_kind(self) -> str:
        """Return what the operator computes: a weight, if any tensor of the network or input goes into it."""
        seen, left = set[Node](), [self.node]
        while left:
            node = left.pop()
            if node not in seen:
                seen.add(node)
                left += [] if operator_name(node) in SHAPE_ONLY else node.all_input_nodes
        if any(node.op == "placeholder" and node.name not in self._hints.constants for node in seen):
            return "a weight"
        return "a random number" if any(map(draws_numbers, seen)) else "a constant"

    def _tensor_name(self, argument: str) -> str:
        """Find the parameter or buffer that an argument is; empty for computed values."""
        item = self._arguments[argument]
        return self._hints.tensors.get(item.name, "") if isinstance(item, Node) else ""

    def _is_value(self, node: Node) -> bool:
        return isinstance(self._env.get(node), Value)

    def _value(self, item: Any) -> Value:
        if isinstance(item, Node):
            found = self._env[item]
            if isinstance(found, Value):
                return found
        return Value.plain(())


def _is_made(node: Node) -> bool:
    """Return whether an operator makes a tensor of the sizes that the code gives."""
    return operator_name(node) in {*FILLED, "rand", "randn"}


def _settled(argument: Any) -> Any:
    """Replace operators that compute a size, such as ``x.shape[0]``, by the size where it is known."""
    if isinstance(argument, list | tuple):
        return [_settled(item) for item in argument]
    size = argument.meta.get("val") if isinstance(argument, Node) else None
    return size if type(size) is int else argument
