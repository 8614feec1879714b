"""Operators: what a network's forward pass is made of, each as a function of group widths.

A dimension whose size depends on widths is an *axis* of the operator. A convolution has two, the
channels that it reads and those that it writes; a normalisation has one. Where there are more, as in a
long concatenation, all are taken to shrink alike, and the axis is their sum.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from secateur.errors import UsageError
from secateur.graph import ChannelGraph
from secateur.graph.capture import Origin, Program
from secateur.graph.groups import IntArray
from secateur.latency.calls import Call, TensorSpec

_MOST_AXES = 2
_FREE = {"dropout", "alpha_dropout", "feature_dropout", "detach", "lift_fresh_copy"}
"""Operators that do nothing in evaluation mode, though their signatures do not say so."""


@dataclass(frozen=True)
class Axis:
    """Sizes that an operator may have along one axis.

    Attributes:
        low: the least, when every group keeps one channel.
        high: the size as it is.
        step: what sizes differ by, whole multiples of it.
    """

    low: int
    high: int
    step: int

    def nearest(self, size: float) -> int:
        """The possible size that is nearest to a number.

        >>> Axis(7, 70, 7).nearest(30)
        28
        """
        steps = round((size - self.low) / self.step)
        return self.low + self.step * min(max(steps, 0), (self.high - self.low) // self.step)


@dataclass(frozen=True)
class _Ref:
    """A dimension that is part of an axis: its share, and the rank among the parts."""

    axis: int
    part: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor argument whose dimensions are numbers or parts of axes."""

    dims: tuple[int | _Ref, ...]
    dtype: torch.dtype
    stored: bool


@dataclass(frozen=True)
class Operator:
    """One kind of operator, with all places of the network where it stands.

    Attributes:
        name: such as ``aten.conv2d.default``.
        axes: the sizes that it may have.
        constants: of each place, the part of the size of each axis that no group owns, shape
            ``(places, axes)``.
        slots: of each place, how often each group's channels count, shape ``(places, axes, groups)``.
        modules: paths of the modules that run it, one a place.
    """

    name: str
    axes: tuple[Axis, ...]
    constants: IntArray = field(compare=False, repr=False)
    slots: IntArray = field(compare=False, repr=False)
    modules: tuple[str, ...] = field(compare=False)
    _arguments: tuple[Any, ...] = field(repr=False)
    _keywords: tuple[tuple[str, Any], ...] = field(repr=False)
    _parts: tuple[tuple[int, ...], ...] = field(repr=False)
    _function: Callable[..., Any] = field(compare=False, repr=False)

    @property
    def kind(self) -> str:
        """What it is called in a table; operators of one kind are alike in what they do with memory."""
        name = self.name.split(".")[1]
        grouped = name in _CONVOLUTIONS and len(self._arguments) > _GROUPS and self._arguments[_GROUPS] != 1
        return f"grouped {name}" if grouped else name

    @property
    def full(self) -> tuple[int, ...]:
        """The size of every axis as it is."""
        return tuple(axis.high for axis in self.axes)

    def call(self, sizes: Sequence[int]) -> Call:
        """The operator with axes of some sizes.

        Args:
            sizes: one per axis.
        """
        parts = [
            _shared_out(size, whole) if len(whole) > 1 else (int(size),)
            for size, whole in zip(sizes, self._parts, strict=True)
        ]

        def filled(item: Any) -> Any:
            if isinstance(item, _Tensor):
                shape = tuple(dim if isinstance(dim, int) else parts[dim.axis][dim.part] for dim in item.dims)
                return TensorSpec(shape, item.dtype, item.stored)
            return tuple(map(filled, item)) if isinstance(item, tuple) else item

        arguments = _consistent(self.name, filled(self._arguments))
        keywords = tuple((name, filled(item)) for name, item in self._keywords)
        return Call(self.name, arguments, keywords, self._function)


def find_operators(graph: ChannelGraph, program: Program) -> tuple[Operator, ...]:
    """The operators of a forward pass that take time; views and what does nothing are left out.

    Args:
        graph: the channel graph of the network.
        program: its forward pass, captured for the inputs that count; the operators are those of the
            graph's own program.

    Raises:
        UsageError: the program is another one.
    """
    reader = _Reader(graph, program)
    found: dict[Operator, list[Operator]] = {}
    for node in program.graph.nodes:
        if _takes_time(node):
            item = reader.operator(node)
            found.setdefault(item, []).append(item)
    return tuple(
        replace(
            first,
            constants=np.concatenate([item.constants for item in same]),
            slots=np.concatenate([item.slots for item in same]),
            modules=tuple(path for item in same for path in item.modules),
        )
        for first, same in found.items()
    )


def _takes_time(node: Node) -> bool:
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.name.removeprefix("aten::") in _FREE:
        return False
    aliases = [item.alias_info for item in schema.returns if item.alias_info is not None]
    return all(alias.is_write for alias in aliases)  # else it is a view


class _Reader:
    """Turns the nodes of a program into operators."""

    def __init__(self, graph: ChannelGraph, program: Program) -> None:
        traced = graph.wiring.program
        if _steps(program) != _steps(traced):
            raise UsageError(
                "for these inputs the forward pass is not the one that was traced; trace the network with "
                "inputs of this shape"
            )
        self._extents = graph.wiring.extents
        self._now = self._extents.sizes(graph.widths)
        self._least = self._extents.sizes(np.minimum(graph.widths, 1))
        stored = (Origin.TENSOR, Origin.CONSTANT)
        self._stored = {name for name, item in program.placeholders.items() if item.origin in stored}

    def operator(self, node: Node) -> Operator:
        """One operator at one place."""
        varying: list[int] = []
        arguments = self._read(tuple(node.args), varying)
        keywords = tuple((name, self._read(item, varying)) for name, item in node.kwargs.items())
        distinct = list(dict.fromkeys(varying))
        axes = [distinct] if len(distinct) > _MOST_AXES else [[extent] for extent in distinct]
        place = {extent: (a, p) for a, axis in enumerate(axes) for p, extent in enumerate(axis)}
        groups = self._extents.slots.shape[1]
        constants = np.array([self._extents.constants[axis].sum() for axis in axes], dtype=np.int64)
        slots = np.array([self._extents.slots[axis].sum(0) for axis in axes], dtype=np.int64)
        path = str((list((node.meta.get("nn_module_stack") or {"": ("",)}).values())[-1])[0])
        return Operator(
            name=str(node.target),
            axes=tuple(self._axis(axis) for axis in axes),
            constants=constants.reshape(1, len(axes)),
            slots=slots.reshape(1, len(axes), groups),
            modules=(path,),
            _arguments=_placed(arguments, place),
            _keywords=tuple((name, _placed(item, place)) for name, item in keywords),
            _parts=tuple(tuple(int(self._now[extent]) for extent in axis) for axis in axes),
            _function=node.target,  # type: ignore[arg-type]
        )

    def _axis(self, extents: list[int]) -> Axis:
        step = math.gcd(*self._extents.slots[extents].ravel().tolist()) if len(extents) == 1 else 1
        return Axis(int(self._least[extents].sum()), int(self._now[extents].sum()), max(step, 1))

    def _read(self, item: Any, varying: list[int]) -> Any:
        """An argument with nodes replaced by tensors, whose varying dimensions are extents."""
        if isinstance(item, Node):
            value = item.meta.get("val")
            if isinstance(value, Tensor):
                return self._tensor(item, 0, value, varying)
            if isinstance(value, list | tuple):
                return tuple(self._tensor(item, place, part, varying) for place, part in enumerate(value))
            return value
        if isinstance(item, list | tuple):
            return tuple(self._read(part, varying) for part in item)
        return item

    def _tensor(self, node: Node, place: int, value: Tensor, varying: list[int]) -> _Tensor:
        found = self._extents.of.get(node.name, ())
        known = place < len(found) and len(found[place]) == value.dim()
        extents = found[place] if known else (-1,) * value.dim()
        dims: list[int | _Ref] = []
        for extent, size in zip(extents, value.shape, strict=True):
            # Sizes that hold examples besides channels are those of the inputs that were traced.
            if extent >= 0 and self._extents.slots[extent].any() and self._now[extent] == size:
                varying.append(extent)
                dims.append(_Ref(extent, -1))
            else:
                dims.append(int(size))
        return _Tensor(tuple(dims), value.dtype, node.name in self._stored)


def _placed(item: Any, place: dict[int, tuple[int, int]]) -> Any:
    """Arguments whose dimensions name axes instead of extents."""
    if isinstance(item, _Tensor):
        dims = tuple(dim if isinstance(dim, int) else _Ref(*place[dim.axis]) for dim in item.dims)
        return replace(item, dims=dims)
    return tuple(_placed(part, place) for part in item) if isinstance(item, tuple) else item


def _steps(program: Program) -> list[tuple[str, str]]:
    return [(node.name, str(node.target)) for node in program.graph.nodes if node.op == "call_function"]


def _shared_out(total: int, whole: Sequence[int]) -> tuple[int, ...]:
    """A total in parts as large against each other as those of the whole, each at least one.

    >>> _shared_out(6, (8, 4))
    (4, 2)
    """
    ends = np.round(np.cumsum(whole) * (total / max(1, sum(whole)))).astype(int)
    return tuple(max(1, int(size)) for size in np.diff(ends, prepend=0))


def _consistent(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments whose plain numbers follow the sizes of their tensors."""
    kind = name.split(".")[1]
    changed = list(arguments)
    if kind in _CONVOLUTIONS and len(arguments) > _GROUPS:
        changed[_GROUPS] = max(1, arguments[0].shape[1] // max(1, arguments[1].shape[1]))
    if kind == "layer_norm":
        changed[1] = arguments[0].shape[-len(arguments[1]) :]
    if kind == "group_norm":
        changed[1] = math.gcd(arguments[1], arguments[0].shape[1])
    return tuple(changed)


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_GROUPS = 6  # place of the number of groups among the arguments of a convolution
