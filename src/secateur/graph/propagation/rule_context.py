"""The context of a rule: what it may read of an operator, and what it may say about channels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import Node

from secateur.graph.capture.program import module_path
from secateur.graph.groups import IntArray, Role
from secateur.graph.labels import Labels, SlotTable, Value
from secateur.graph.propagation.constants import is_fixed, makers
from secateur.graph.propagation.findings import (
    Attribute,
    Choice,
    Equation,
    Findings,
    Hints,
    OperatorMacs,
    Read,
    Rescale,
    Statistic,
)
from secateur.graph.propagation.objections import Objections
from secateur.graph.propagation.views import left_out
from secateur.graph.sizes.factors import Factor, growth_of
from secateur.graph.sizes.source import Computed, FromAttribute, FromTensor, Power, Source


class RuleContext:
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
        self._names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
        self._objections = Objections(node, len(env), findings, hints)
        self._arguments = {**defaults, **dict(zip(self._names, node.args, strict=False)), **node.kwargs}

    # -- arguments and results -------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Tell whether the operator has an argument of this name that is not ``None``."""
        return self._arguments.get(name) is not None

    def option(self, name: str) -> Any:
        """The value of an argument that is not a tensor."""
        return self._arguments[name]

    def option_or(self, name: str, default: Any) -> Any:
        """The value of an argument that is not a tensor, or a default where there is no such argument."""
        return self._arguments.get(name, default)

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

    def tie_zeros(self, name: str, labels: IntArray) -> None:
        """Let zeros that the module itself made as wide as its channels follow them in size.

        Args:
            name: an argument that is a tensor, or a list of them; others than such zeros stay as they are.
            labels: of the last dimension.
        """
        found = self._arguments[name]
        for node in found if isinstance(found, Sequence) else [found]:
            value = self._value(node)
            made = str(node.target).startswith("aten.zeros") and module_path(node) == self.module
            if made and value.shape[-1] == len(labels):
                self._env[node] = value.replaced(len(value.shape) - 1, labels)

    # -- what a rule may say ---------------------------------------------------------------

    def join(self, left: Labels, right: Labels, why: str = "") -> Labels:
        """Demand that two label vectors are equal; one without labels freezes the other.

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
        if len(left):
            self._findings.joined(int(left[0]), int(right[0]))
        return left

    def why_no_channels(self, weight: str) -> str:
        """Say why what a layer reads cannot lose channels, where its weight or its input has none."""
        item = self._arguments[weight]
        if isinstance(item, Node) and item.name in self._hints.constants:
            return (
                f"meets a weight that is no parameter of the network ({self.place}); "
                "layers belong in an nn.ModuleList, not in a plain list"
            )
        return f"reads values that are not channels ({self.place})"

    def freeze(self, labels: Labels, reason: str) -> None:
        """Forbid the removal of these channels; a result that nothing reads forbids nothing.

        Code often picks an element for its shape alone. Whether it runs on other widths shows in the trial.
        """
        if labels is not None and self.node.name not in self._hints.unread:
            self.slots.freeze(labels, reason)
            self._objections.raise_to(labels, own=True)

    def set_role(self, labels: Labels, role: Role) -> None:
        """Say what a parameter's dimension does with its channels."""
        if labels is not None:
            self.slots.set_role(labels, role)

    def tie_parameter(self, name: str, labels: Labels, dim: int = 0) -> None:
        """Join a parameter with one number per channel (a bias, a scale) to the channels."""
        if self.has(name):
            own = self.value(name).labels[dim]
            self.set_role(own, Role.CARRIER)
            self.join(own, labels, f"reads values that are not channels ({self.place})")

    def read(self, name: str, dim: int, labels: Labels, weight: str = "") -> None:
        """Record that the operator contracts over the channels in a dimension of an argument."""
        if labels is None:
            return
        argument = self._names.index(name)
        tensor = self._arguments[weight].name if weight else ""
        self._findings.reads.append(Read(self.node.name, argument, dim, labels, self.module, tensor))

    def read_item(self, name: str, place: int, dim: int, labels: Labels) -> None:
        """As :meth:`read`, of one tensor of an argument that is a list of tensors."""
        if labels is not None:
            argument = self._names.index(name)
            self._findings.reads.append(Read(self.node.name, argument, dim, labels, self.module, "", place))

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

    def _statistic_of_weights(self, result: Value) -> Value:
        """Freeze what a statistic of weights is taken over: without some of it, it is another number."""
        kept = {id(labels) for labels in result.labels if labels is not None}
        same = [value.shape for value in self.tensors()] == [result.shape]
        for value in self.tensors():
            for labels in value.labels:
                if labels is not None and (same or id(labels) not in kept):
                    self.freeze(
                        labels, f"a weight is computed with a statistic over these channels ({self.place})"
                    )
        return result

    def rescale(self, length: str, direction: str, dim: int | None) -> bool:
        """Record that a weight is normalised by its norm, so that its length must follow a cut.

        Args:
            length: name of the argument that holds the lengths.
            direction: name of the argument that holds the directions.
            dim: the dimension for each index of which there is a norm; ``None`` for one norm of all.

        Returns:
            Whether both are tensors of the network; other values cannot be changed.
        """
        names = [self._tensor_name(argument) for argument in (length, direction)]
        if not all(names):
            return False
        self._findings.rescales.append(Rescale(names[0], names[1], dim))
        return True

    def add_macs(self, coefficient: int, *extents: Labels | int) -> None:
        """Add multiply-accumulates: the coefficient times every size or labelled dimension."""
        labelled = []
        for extent in extents:
            if isinstance(extent, np.ndarray):
                labelled.append(extent)
            elif extent is not None:
                coefficient *= int(extent)
        self._findings.work.append(OperatorMacs(self.node.name, self.module, coefficient, tuple(labelled)))

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

    def attribute_with_value(self, labels: IntArray, used: Sequence[str] = ()) -> str | None:
        """Tie the first integer attribute of the module whose value is the number of labels.

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

    def free_axis(self, units: Sequence[int]) -> int:
        """The axis of a rectangle that stays free: the one with most units, unless told otherwise."""
        chosen = self._hints.axes.get(self.node.name)
        return int(np.argmax(units)) if chosen is None else chosen

    def record_axis(self, units: Sequence[int], chosen: int, labels: IntArray) -> None:
        """Record a choice, so that a later operator can object to it."""
        self._findings.chosen(Choice(self.node.name, tuple(units), chosen, labels))

    def reject_axis(self, labels: Labels) -> None:
        """Object to the choice that left these channels free: another axis would suit better."""
        self._objections.raise_to(labels, own=False)

    def reject_axis_mismatch(self, one: Value, other: Value, dims: Iterable[tuple[int, int]]) -> None:
        """Object to all choices in the one of two values that lacks the channels that the other has.

        Args:
            one: a value.
            other: the value that it meets.
            dims: pairs of dimensions in which they meet.
        """
        for left, right in dims:
            if (one.labels[left] is None) == (other.labels[right] is None):
                continue
            poorer = one if one.labels[left] is None else other
            for labels in poorer.labels:
                self.reject_axis(labels)

    def assume(self) -> bool:
        """Ask whether fixed numbers may be taken to follow the widths, for a trial to check."""
        if self.node.name in self._hints.refused:
            return False
        self._findings.assumptions.add(self.node.name)
        return True

    @property
    def sources(self) -> tuple[Source | None, ...]:
        """Where the sizes that the operator was given come from; empty if that is not known."""
        return self._hints.sizes.get(self.node.name, ())

    def is_number_in_code(self, dim: int) -> bool:
        """Tell whether the code gives the size of a dimension as a number, as far as is known."""
        given = self.option_or("size", None) or self.option_or("shape", None) or ()
        known = len(self.sources) == len(given) == len(self.shape)
        return known and self.sources[dim] is None and given[dim] != -1

    def follower(self, place: int, size: int) -> Labels:
        """Labels for contents that are repeated as often as a size says that may change."""
        source = self.sources[place] if place < len(self.sources) else None
        return self.slots.fresh(size) if size > 1 and self._may_change(source) else None

    def _may_change(self, source: Source | int | None) -> bool:
        """Tell whether a size may follow channels: it is an attribute, or the size of such a dimension."""
        if isinstance(source, Computed):
            return self._may_change(source.left) or self._may_change(source.right)
        if not isinstance(source, FromTensor):
            return isinstance(source, FromAttribute)
        if source.tensor:
            return True
        found = next((value for node, value in self._env.items() if node.name == source.node), None)
        value = found[source.place] if isinstance(found, Sequence) else found
        return isinstance(value, Value) and value.labels[source.dim] is not None

    def constrain_sizes(self, vectors: Sequence[Labels], counts: Sequence[int]) -> None:
        """Record where the sizes that the operator was given come from.

        Args:
            vectors: for each size, the labels that it counts, ``None`` if it cannot change.
            counts: the sizes.
        """
        for source, labels, count in zip(self.sources, vectors, counts, strict=False):
            if source is not None:
                self._findings.equations.append(Equation(source, count, labels, self.place))

    def scale(self, *, divides: bool) -> None:
        """Record a number made from a size, by which the operator multiplies or divides."""
        source = self.sources[0] if self.sources else None
        if source is None:
            return
        base, power = (source.base, source.power) if isinstance(source, Power) else (source, 1.0)
        growth = growth_of(self.node.args[0], self._findings)
        factor = Factor(self.node.name, base, power, divides, growth, self.shape, self.place)
        self._findings.factors.append(factor)

    def constrain_borders(
        self, labels: IntArray, borders: tuple[int, int], given: tuple[int | None, int | None]
    ) -> None:
        """Record where the borders of a range come from, which count from its front or from its end.

        Args:
            labels: of the whole dimension.
            borders: begin and end, counted from the front.
            given: begin and end as the operator was given them; negative ones count from the end.
        """
        for source, place, number in zip(self.sources, borders, given, strict=False):
            if source is None:
                continue
            if number is not None and number < 0:
                part, flipped = labels[place:], Computed("sub", 0, source)
                self._findings.equations.append(Equation(flipped, len(part), part, self.place))
            else:
                self._findings.equations.append(Equation(source, place, labels[:place], self.place))

    # -- inside ----------------------------------------------------------------------------

    def _tensor_name(self, argument: str) -> str:
        """The parameter or buffer that an argument is; empty for computed values."""
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

    # -- operators with several results, constants, values computed from parameters ------------

    def statistic_along(self, name: str, dims: Collection[int]) -> None:
        """Marks a statistic over some dimensions of one argument, for operators with any number of results.

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
        """Let a constant argument take over the channels of another one; the trial cut has to check it.

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

    def left_out(self, name: str) -> list[IntArray]:
        """List what an argument leaves out of the wider values in whose memory it lies.

        Args:
            name: the argument, a tensor.

        Returns:
            For each range of a last dimension that it was taken from, the labels outside of the range.
        """
        return list(left_out(self._arguments[name], self._env))

    def owner(self) -> nn.Module | None:
        """Return the module that runs the operator."""
        return self._modules.get(self.module)

    def is_fixed(self, *names: str) -> bool:
        """Return whether arguments are computed from parameters and buffers only."""
        return is_fixed([self._arguments[name] for name in names], self._env)
