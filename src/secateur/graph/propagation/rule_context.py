"""Give the built-in rules additional methods: sizes in the code, free axes, constants, weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from secateur.graph.capture.nodes import module_path
from secateur.graph.groups import IntArray, Role
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.constants import is_fixed
from secateur.graph.propagation.factors import Factor, growth_of
from secateur.graph.propagation.findings import Equation, Read, Rescale
from secateur.graph.propagation.operator_context import OperatorContext
from secateur.graph.propagation.size_source import Computed, FromAttribute, FromTensor, Power, Source
from secateur.graph.propagation.views import left_out


class RuleContext(OperatorContext):
    """Additional methods for the built-in rules."""

    def join_rows(self, rows: IntArray | Sequence[Labels]) -> None:
        """Join all label vectors of a list, or all rows of a matrix, with the first one."""
        for row in rows[1:]:
            self.join(row, rows[0])

    def tie_zeros(self, name: str, labels: IntArray) -> None:
        """Label zeros that the module creates as wide as its channels, so that they follow these in size.

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

    @property
    def has_several_results(self) -> bool:
        """Return whether the operator returns a list of tensors."""
        return isinstance(self.node.meta["val"], Sequence)

    def freeze_all(self, reason: str) -> None:
        """Freeze all channels of all tensor arguments."""
        for value in self.tensors():
            for labels in value.labels:
                self.freeze(labels, f"{reason} ({self.place})")

    def refuse(self, reason: str) -> Value | list[Value]:
        """Freeze all channels of all tensor arguments, and return results without channels."""
        self.freeze_all(reason)
        if self.has_several_results:
            return [Value.plain(shape) for shape in self.shapes]
        return Value.plain(self.shape)

    def why_no_channels(self, weight: str) -> str:
        """Return why a layer's input cannot lose channels, where its weight or its input has none."""
        item = self._arguments[weight]
        if isinstance(item, Node) and item.name in self._hints.constants:
            return (
                f"meets a weight that is no parameter of the network ({self.place}); "
                "layers belong in an nn.ModuleList, not in a plain list"
            )
        return f"reads values that are not channels ({self.place})"

    def fixed_indices(self, item: Any) -> list[int] | None:
        """Read an index tensor if it is a list of numbers in the code, otherwise return ``None``."""
        while isinstance(item, Node) and item.op == "call_function" and "lift_fresh_copy" in str(item.target):
            item = item.args[0]
        value = self._hints.constants.get(item.name) if isinstance(item, Node) else None
        if not isinstance(value, Tensor) or value.dim() != 1 or value.dtype != torch.int64:
            return None
        indices: list[int] = value.tolist()
        return indices

    def pick(self, labels: Labels, index: Value, reason: str) -> None:
        """Record that the operator picks channels, which only indices of these channels may do.

        Args:
            labels: the channels of the dimension that is picked from.
            index: the value that holds the indices.
            reason: why the channels are frozen if the index holds other numbers.
        """
        if index.indices_of is None:
            self.freeze(labels, reason)
        elif labels is None or len(labels) != len(index.indices_of):
            self.freeze(labels, reason)
            self.freeze(index.indices_of, f"places of channels pick from something else ({self.place})")
        else:
            self.set_role(labels, Role.CARRIER)
            self.join(labels, index.indices_of)

    def read_item(self, name: str, place: int, dim: int, labels: Labels) -> None:
        """Record a read, as :meth:`read`, of one tensor of an argument that is a list of tensors."""
        if labels is not None:
            argument = self._names.index(name)
            self._findings.reads.append(Read(self.node.name, argument, dim, labels, self.module, "", place))

    @property
    def is_part_of_distance(self) -> bool:
        """Return whether the operator sums squares of weights, which are then added to other values."""
        return self.node.name in self._hints.distances

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

    def count_groups(self, name: str, labels: IntArray, channels: IntArray) -> None:
        """Let the number of groups that the operator was given follow a cut.

        Args:
            name: the attribute of the module that holds the number, where code gives no other source.
            labels: of the groups.
            channels: what is frozen if the number is fixed in the code.
        """
        if any(self.sources):
            self.constrain_sizes([labels], [len(labels)])
        elif not self.attribute(name, labels):
            self.freeze(channels, f"the number of groups is fixed in code ({self.place})")

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

    def free_axis(self, units: Sequence[int], axes: Sequence[int] = ()) -> int:
        """Choose the axis of a rectangle that stays free: the one with most units, if nothing else is known.

        Args:
            units: how many channels each axis would leave.
            axes: the place of each of them among all axes, if there are others.

        Returns:
            An index of ``units``; ``WHOLE`` if none may be free.
        """
        return self._findings.axes.choose(self.node.name, units, axes)

    def record_axis(self, units: Sequence[int], chosen: int, labels: IntArray) -> None:
        """Record a choice, so that a later operator can object to it."""
        self._findings.axes.record(self.node.name, units, chosen, labels)

    def record_fixed_sizes(self, labels: IntArray, sizes: Sequence[int]) -> None:
        """Record that the code gives sizes of a rectangle of channels as numbers, which follow no cut."""
        listed = " and ".join(map(str, sizes))
        kind = "numbers" if len(sizes) > 1 else "a number"
        text = f"the code gives {listed} as {kind} ({self.place}): write an attribute, such as self.heads"
        self._findings.advice |= dict.fromkeys(labels.tolist(), text)

    def advice_on(self, labels: Labels) -> str:
        """Return what to write so that the other axis of a rectangle can be cut; empty if it is unknown."""
        found = [] if labels is None else labels.tolist()
        return next((self._findings.advice[slot] for slot in found if slot in self._findings.advice), "")

    def open_axis(self, axis: int, size: int, whole: IntArray) -> Labels:
        """Make labels of an axis in the walk that finds what axes are used for; ``None`` in other walks.

        Rectangles of no layer stay as they are, such as a mask whose size an attribute says.

        Args:
            axis: its place.
            size: of the axis.
            whole: labels of the rectangle.
        """
        axes = self._hints.open_axes
        if axes is None or not (axes.is_open(whole) or self.slots.are_of_tensors(whole)):
            return None
        labels = self.slots.fresh(size)
        axes.opened((self.node.name, axis), labels, whole)
        return labels

    def merge_open(self, outer: Labels, inner: Labels) -> Labels:
        """Make labels of two axes that were left open and become one; ``None`` where they are not open."""
        axes = self._hints.open_axes
        if axes is None or outer is None or inner is None:
            return None
        if not (axes.is_open(outer) and axes.is_open(inner)):
            return None
        labels = self.slots.fresh(len(outer) * len(inner))
        axes.merged(outer, inner, labels)
        return labels

    def record_product(
        self,
        left: Value,
        right: Value,
        shared: Sequence[tuple[int, int]],
        contracted: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Record a product of two values, such as queries and keys.

        Args:
            left: one factor.
            right: the other.
            shared: pairs of dimensions, one of each factor, for each index of which there is a product.
            contracted: pairs of dimensions over which the product sums.
        """
        if self._hints.open_axes is not None:
            self._hints.open_axes.record_product(self.module, (left, right), shared, contracted)

    def record_gate(self, one: Value, other: Value) -> None:
        """Record a product of two values index by index, such as values and the weights of their heads."""
        axes = self._hints.open_axes
        if axes is None or self.module not in axes.uses:
            return
        ranks = len(one.shape), len(other.shape)
        pairs = [(ranks[0] - dim, ranks[1] - dim) for dim in range(1, min(ranks) + 1)]
        shared = [
            (left, right)
            for left, right in pairs
            if one.shape[left] == other.shape[right]
            and axes.is_open(one.labels[left])
            and axes.is_open(other.labels[right])
        ]
        self.record_product(one, other, shared)

    def reject_axis(self, labels: Labels) -> None:
        """Object to the choice that left these channels free: another axis would suit better."""
        self._findings.axes.reject(self.node.name, labels, own=False)

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

    @property
    def sources(self) -> tuple[Source | None, ...]:
        """Return where the sizes that the operator was given come from; empty if that is not known."""
        return self._hints.sizes.get(self.node.name, ())

    def is_number_in_code(self, dim: int) -> bool:
        """Return whether the code gives the size of a dimension as a number, as far as is known."""
        given = self.option_or("size", None) or self.option_or("shape", None) or ()
        known = len(self.sources) == len(given) == len(self.shape)
        return known and self.sources[dim] is None and given[dim] != -1

    def labels_of_size(self, index: int, size: int) -> Labels:
        """Make labels for a dimension whose size was given, if the size may change; ``None`` otherwise.

        Args:
            index: which of the sizes that the operator was given.
            size: the number.
        """
        source = self.sources[index] if index < len(self.sources) else None
        return self.slots.fresh(size) if size > 1 and self._may_change(source) else None

    def counts_channels(self, index: int) -> bool:
        """Return whether a size that the operator was given is that of a dimension of channels of a value."""
        source = self.sources[index] if index < len(self.sources) else None
        return isinstance(source, FromTensor) and self._may_change(source)

    def _may_change(self, source: Source | int | None) -> bool:
        """Return whether a size may follow channels: it is an attribute, or the size of such a dimension."""
        if isinstance(source, Computed):
            return self._may_change(source.left) or self._may_change(source.right)
        if not isinstance(source, FromTensor):
            return isinstance(source, FromAttribute)
        if source.tensor:
            return True
        found = next((value for node, value in self._env.items() if node.name == source.node), None)
        value = found[source.result] if isinstance(found, Sequence) else found
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

    def left_out(self, name: str) -> list[IntArray]:
        """List the labels outside the view, if an argument is a view of a wider tensor.

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
