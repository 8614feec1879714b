"""Find the operators of a forward pass, and express their tensor sizes as functions of the group widths.

A dimension whose size depends on widths is an *axis* of the operator. A convolution has two, its input and
its output channels; a normalisation has one. Where there are more than two, as in a long concatenation, they
are assumed to shrink by the same share, and the axis is their sum.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import SymFloat, Tensor
from torch.fx import Node

from secateur.graph import ChannelGraph
from secateur.graph.capture.nodes import module_path, operator_name
from secateur.graph.capture.operators import CONVOLUTIONS, DROPOUTS, GROUPS
from secateur.graph.capture.program import Origin, Program
from secateur.graph.groups import BoolArray, IntArray

_MOST_AXES = 2


@dataclass(frozen=True)
class TensorSpec:
    """A tensor argument.

    Attributes:
        shape: its sizes.
        dtype: type of its numbers.
        stored: whether it is a parameter or buffer, which stays in memory between forward passes, and not a
            value that an earlier operator has just written.

    >>> print(TensorSpec((1, 8), torch.float32, True))
    float32[1,8]*
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: bool

    @property
    def bytes(self) -> int:
        """Return its size in memory."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __str__(self) -> str:
        sizes = ",".join(map(str, self.shape))
        return f"{str(self.dtype).removeprefix('torch.')}[{sizes}]{'*' * self.stored}"

    def make(self, device: torch.device) -> Tensor:
        """Create such a tensor: positive numbers, or zeros for integers, which may be indices."""
        if self.dtype.is_floating_point:
            # Neither zero nor large: no operator takes a special path for such numbers.
            return torch.rand(self.shape, device=device).add_(0.5).to(self.dtype)
        return torch.zeros(self.shape, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class OperatorCall:
    """An operator and its arguments; its text is the key under which its time is kept.

    Attributes:
        name: of the operator, such as ``aten.conv2d.default``.
        arguments: positional arguments; tensors as ``TensorSpec``, also inside tuples.
        keywords: named arguments.
        function: the operator itself.

    >>> spec = TensorSpec((2, 3), torch.float32, False)
    >>> print(OperatorCall("aten.relu.default", (spec,), (), torch.ops.aten.relu.default))
    aten.relu.default(float32[2,3])
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    function: Callable[..., Any] = field(compare=False, repr=False)

    def __str__(self) -> str:
        words = [_text(item) for item in self.arguments]
        words += [f"{name}={_text(item)}" for name, item in self.keywords]
        return f"{self.name}({', '.join(words)})"

    def make(self, spec: TensorSpec, device: torch.device) -> Tensor:
        """Create a tensor for one of the arguments.

        Grouped products take where the rows of each matrix end; with zeros they would compute nothing.

        Args:
            spec: the argument.
            device: where to create it.
        """
        if "grouped_mm" not in self.name or spec.dtype.is_floating_point or not spec.shape:
            return spec.make(device)
        runs, rows = spec.shape[0], self.specs[0].shape[0]
        return (torch.arange(1, runs + 1, device=device) * rows // runs).to(spec.dtype)

    @property
    def specs(self) -> list[TensorSpec]:
        """List all tensors among the arguments."""
        found: list[TensorSpec] = []
        replace_specs((self.arguments, tuple(item for _, item in self.keywords)), found.append)
        return found


def replace_specs(item: Any, change: Callable[[TensorSpec], Any]) -> Any:
    """Replace every tensor among arguments; tuples become lists, which operators expect."""
    if isinstance(item, TensorSpec):
        return change(item)
    if isinstance(item, tuple):
        return [replace_specs(part, change) for part in item]
    return item


def _text(item: Any) -> str:
    if isinstance(item, tuple):
        return f"[{', '.join(map(_text, item))}]"
    return str(item)


@dataclass(frozen=True)
class Axis:
    """Sizes that an operator may have along one axis.

    Attributes:
        low: the least size, when every prunable group keeps one channel.
        high: the present size.
        step: sizes differ by multiples of it.
    """

    low: int
    high: int
    step: int

    def nearest(self, size: float) -> int:
        """Return the possible size that is nearest to a number.

        >>> Axis(7, 70, 7).nearest(30)
        28
        """
        steps = round((size - self.low) / self.step)
        return self.low + self.step * min(max(steps, 0), (self.high - self.low) // self.step)


@dataclass(frozen=True)
class _AxisPart:
    """A dimension that belongs to an axis: the index of the axis, and of the dimension among its parts."""

    axis: int
    part: int


@dataclass(frozen=True)
class _TensorTemplate:
    """A tensor argument whose dimensions are numbers or parts of axes."""

    dims: tuple[int | _AxisPart, ...]
    dtype: torch.dtype
    stored: bool


@dataclass(frozen=True)
class Operator:
    """One operator with its shapes, and all places of the network where it runs.

    Attributes:
        name: such as ``aten.conv2d.default``.
        axes: the sizes that it may have.
        constants: at each place, the part of the size of each axis that belongs to no group, shape
            ``(places, axes)``.
        slots: at each place, how often each group's channels count, shape ``(places, axes, groups)``.
        branches: at each place, whether each residual branch contains it, shape ``(places, branches)``.
        modules: paths of the modules that run it, one per place.
    """

    name: str
    axes: tuple[Axis, ...]
    constants: IntArray = field(compare=False, repr=False)
    slots: IntArray = field(compare=False, repr=False)
    branches: BoolArray = field(compare=False, repr=False)
    modules: tuple[str, ...] = field(compare=False)
    _arguments: tuple[Any, ...] = field(repr=False)
    _keywords: tuple[tuple[str, Any], ...] = field(repr=False)
    _parts: tuple[tuple[int, ...], ...] = field(repr=False)
    _function: Callable[..., Any] = field(compare=False, repr=False)

    @property
    def kind(self) -> str:
        """Return its kind in a latency table."""
        return operator_kind(self.name, self._arguments)

    @property
    def full(self) -> tuple[int, ...]:
        """Return the present size of every axis."""
        return tuple(axis.high for axis in self.axes)

    def call(self, sizes: Sequence[int]) -> OperatorCall:
        """Return the call of the operator with axes of given sizes.

        Args:
            sizes: one per axis.
        """
        parts = [
            _split(size, whole) if len(whole) > 1 else (int(size),)
            for size, whole in zip(sizes, self._parts, strict=True)
        ]

        def filled(item: Any) -> Any:
            if isinstance(item, _TensorTemplate):
                shape = tuple(dim if isinstance(dim, int) else parts[dim.axis][dim.part] for dim in item.dims)
                return TensorSpec(shape, item.dtype, item.stored)
            return tuple(map(filled, item)) if isinstance(item, tuple) else item

        arguments = _consistent(self.name, filled(self._arguments))
        keywords = tuple((name, filled(item)) for name, item in self._keywords)
        return OperatorCall(self.name, arguments, keywords, self._function)


def operator_kind(name: str, arguments: Sequence[object]) -> str:
    """Return the kind of an operator; operators of one kind access memory in a similar way.

    >>> operator_kind("aten.add.Tensor", ())
    'add'
    """
    kind = name.split(".")[1]
    grouped = kind in CONVOLUTIONS and len(arguments) > GROUPS and arguments[GROUPS] != 1
    return f"grouped {kind}" if grouped else kind


def find_operators(graph: ChannelGraph, program: Program) -> tuple[Operator, ...]:
    """Find the operators of a forward pass that take time; views and operators without effect do not.

    Args:
        graph: the channel graph of the network.
        program: its forward pass, captured for the inputs to be timed; it must run the same operators as the
            program of the graph.

    Raises:
        ValueError: the program runs other operators.
    """
    reader = _OperatorReader(graph, program)
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
            branches=np.concatenate([item.branches for item in same]),
            modules=tuple(path for item in same for path in item.modules),
        )
        for first, same in found.items()
    )


def _takes_time(node: Node) -> bool:
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    name = operator_name(node)
    if not name or name in DROPOUTS or name == "lift_fresh_copy":
        return False
    returns = node.target._schema.returns  # type: ignore[union-attr]
    aliases = [item.alias_info for item in returns if item.alias_info is not None]
    return all(alias.is_write for alias in aliases)  # otherwise it is a view


class _OperatorReader:
    """Convert the nodes of a program to operators."""

    def __init__(self, graph: ChannelGraph, program: Program) -> None:
        if not same_operators(program, graph.wiring.program):
            raise ValueError("the program runs other operators than that of the graph")
        self._extents = graph.wiring.extents
        self._branches = [frozenset(branch.nodes) for branch in graph.wiring.branches]
        self._sizes = self._extents.sizes(graph.widths)
        prunable = np.array([group.prunable for group in graph.groups], dtype=np.bool_)
        self._least_sizes = self._extents.sizes(np.where(prunable, np.minimum(graph.widths, 1), graph.widths))
        self._varies = np.asarray(self._extents.slots[:, prunable].any(1))
        stored = (Origin.TENSOR, Origin.CONSTANT)
        self._stored = {name for name, item in program.placeholders.items() if item.origin in stored}

    def operator(self, node: Node) -> Operator:
        """Convert one node: an operator at one place."""
        varying: list[int] = []
        arguments = self._read(tuple(node.args), varying)
        keywords = tuple((name, self._read(item, varying)) for name, item in node.kwargs.items())
        distinct = list(dict.fromkeys(varying))
        axes = [distinct] if len(distinct) > _MOST_AXES else [[extent] for extent in distinct]
        place = {extent: (a, p) for a, axis in enumerate(axes) for p, extent in enumerate(axis)}
        groups = self._extents.slots.shape[1]
        constants = np.array([self._extents.constants[axis].sum() for axis in axes], dtype=np.int64)
        slots = np.array([self._extents.slots[axis].sum(0) for axis in axes], dtype=np.int64)
        return Operator(
            name=str(node.target),
            axes=tuple(self._axis(axis) for axis in axes),
            constants=constants.reshape(1, len(axes)),
            slots=slots.reshape(1, len(axes), groups),
            branches=np.array([[node.name in names for names in self._branches]], dtype=np.bool_),
            modules=(module_path(node),),
            _arguments=_with_axes(arguments, place),
            _keywords=tuple((name, _with_axes(item, place)) for name, item in keywords),
            _parts=tuple(tuple(int(self._sizes[extent]) for extent in axis) for axis in axes),
            _function=node.target,  # type: ignore[arg-type]
        )

    def _axis(self, extents: list[int]) -> Axis:
        step = math.gcd(*self._extents.slots[extents].ravel().tolist()) if len(extents) == 1 else 1
        return Axis(int(self._least_sizes[extents].sum()), int(self._sizes[extents].sum()), max(step, 1))

    def _read(self, item: Any, varying: list[int]) -> Any:
        """Replace nodes in an argument by tensors whose varying dimensions are numbers of extents."""
        if isinstance(item, Node):
            value = item.meta.get("val")
            if isinstance(value, Tensor):
                return self._tensor(item, 0, value, varying)
            if isinstance(value, list | tuple):
                return tuple(self._tensor(item, place, part, varying) for place, part in enumerate(value))
            # Time does not depend on a number that the forward pass computes.
            return 1.0 if isinstance(value, SymFloat) else value
        if isinstance(item, list | tuple):
            return tuple(self._read(part, varying) for part in item)
        return item

    def _tensor(self, node: Node, place: int, value: Tensor, varying: list[int]) -> _TensorTemplate:
        found = self._extents.of.get(node.name, ())
        known = place < len(found) and len(found[place]) == value.dim()
        extents = found[place] if known else (-1,) * value.dim()
        dims: list[int | _AxisPart] = []
        for extent, size in zip(extents, value.shape, strict=True):
            # A size that counts examples besides channels differs from that of the traced inputs.
            if extent >= 0 and self._varies[extent] and self._sizes[extent] == size:
                varying.append(extent)
                dims.append(_AxisPart(extent, -1))
            else:
                dims.append(int(size))
        return _TensorTemplate(tuple(dims), value.dtype, node.name in self._stored)


def _with_axes(item: Any, place: dict[int, tuple[int, int]]) -> Any:
    """Replace numbers of extents in arguments by axes."""
    if isinstance(item, _TensorTemplate):
        dims = tuple(dim if isinstance(dim, int) else _AxisPart(*place[dim.axis]) for dim in item.dims)
        return replace(item, dims=dims)
    return tuple(_with_axes(part, place) for part in item) if isinstance(item, tuple) else item


def same_operators(one: Program, other: Program) -> bool:
    """Return whether two programs run the same operators in the same order."""
    steps = (
        [(node.name, str(node.target)) for node in program.graph.nodes if node.op == "call_function"]
        for program in (one, other)
    )
    return next(steps) == next(steps)


def _split(total: int, whole: Sequence[int]) -> tuple[int, ...]:
    """Split a total in proportion to the parts of the whole; each part is at least one.

    >>> _split(6, (8, 4))
    (4, 2)
    """
    ends = np.round(np.cumsum(whole) * (total / max(1, sum(whole)))).astype(int)
    return tuple(max(1, int(size)) for size in np.diff(ends, prepend=0))


def _consistent(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Adjust integer arguments to the sizes of the tensors."""
    kind = name.split(".")[1]
    changed = list(arguments)
    if kind in CONVOLUTIONS and len(arguments) > GROUPS:
        changed[GROUPS] = max(1, arguments[0].shape[1] // max(1, arguments[1].shape[1]))
    if kind == "layer_norm":
        changed[1] = arguments[0].shape[-len(arguments[1]) :]
    if kind == "group_norm":
        changed[1] = math.gcd(arguments[1], arguments[0].shape[1])
    return tuple(changed)
