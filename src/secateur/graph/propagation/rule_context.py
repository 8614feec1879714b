"""Give the rules of this library what they need besides: sizes in the code, free axes, constants, weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn
from torch.fx import Node

from secateur.graph.capture.program import module_path
from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.constants import is_fixed
from secateur.graph.propagation.findings import Choice, Equation, Read, Rescale
from secateur.graph.propagation.operator_context import OperatorContext
from secateur.graph.propagation.views import left_out
from secateur.graph.sizes.factors import Factor, growth_of
from secateur.graph.sizes.source import Computed, FromAttribute, FromTensor, Power, Source


class RuleContext(OperatorContext):
    """What the rules of this library read of an operator and say of it, besides what any rule does."""

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

    def why_no_channels(self, weight: str) -> str:
        """Say why what a layer reads cannot lose channels, where its weight or its input has none."""
        item = self._arguments[weight]
        if isinstance(item, Node) and item.name in self._hints.constants:
            return (
                f"meets a weight that is no parameter of the network ({self.place}); "
                "layers belong in an nn.ModuleList, not in a plain list"
            )
        return f"reads values that are not channels ({self.place})"

    def read_item(self, name: str, place: int, dim: int, labels: Labels) -> None:
        """Record a read, as :meth:`read`, of one tensor of an argument that is a list of tensors."""
        if labels is not None:
            argument = self._names.index(name)
            self._findings.reads.append(Read(self.node.name, argument, dim, labels, self.module, "", place))

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
        """Choose the axis of a rectangle that stays free: that with most units, if no hint names another."""
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
        """Make labels for contents that are repeated as often as a size says that may change."""
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

    def _tensor_name(self, argument: str) -> str:
        """Find the parameter or buffer that an argument is; empty for computed values."""
        item = self._arguments[argument]
        return self._hints.tensors.get(item.name, "") if isinstance(item, Node) else ""

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
