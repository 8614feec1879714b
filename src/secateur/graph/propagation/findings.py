"""Hold what propagation knows before it starts, and what it finds in addition to equalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.axis_choices import AxisChoices
from secateur.graph.propagation.size_source import AttributeKey, Source

if TYPE_CHECKING:
    from secateur.graph.propagation.attention_units import OpenAxes
    from secateur.graph.propagation.factors import Factor


@dataclass(frozen=True)
class Read:
    """An operator contracts over channels: its argument's dimension is where a mask has an effect."""

    node: str
    argument: int
    dim: int
    labels: IntArray
    module: str
    tensor: str
    """Name of the parameter or buffer that is contracted with, empty if there is none."""
    place: int | None = None
    """Which tensor, where the argument is a list of them."""
    at_input: bool = False
    """Whether it is the input of the module that is read."""
    fill: float = 0.0
    """What a removed channel reads as; infinite where channels are ranked, so that it comes last."""
    least: int = 1
    """How many of the channels must stay, as many as the operator picks."""


@dataclass(frozen=True)
class Statistic:
    """An operator takes a statistic over channels: it must only see the kept ones."""

    node: str
    arguments: tuple[tuple[int, Value], ...]
    result: Value
    sizes: tuple[tuple[int, int | None, IntArray], ...] = ()
    """Arguments (and the place in them, if they are lists) that count kept labels."""
    factors: tuple[tuple[int, IntArray, float], ...] = ()
    """Arguments that are proportional to a power of the number of kept labels of a vector."""


@dataclass(frozen=True)
class Rescale:
    """A weight ``length * direction / norm(direction)``: a cut of the direction changes the norm.

    Attributes:
        length: name of the parameter that is multiplied with.
        direction: name of the parameter that is normalised.
        dim: the dimension for each index of which there is a norm; ``None`` for one norm of all.
    """

    length: str
    direction: str
    dim: int | None


@dataclass(frozen=True)
class OperatorMacs:
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

    @property
    def key(self) -> AttributeKey:
        """Return what identifies the attribute."""
        return self.module, self.name, self.index


@dataclass(frozen=True)
class Equation:
    """A size that an operator was given, where it comes from, and the labels that it counts."""

    source: Source
    size: int
    labels: Labels
    place: str


@dataclass
class Findings:
    """What propagation finds in addition to equalities."""

    reads: list[Read] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    work: list[OperatorMacs] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)
    rescales: list[Rescale] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    assumptions: set[str] = field(default_factory=set)
    """Operators whose fixed numbers were taken to follow the widths, which only a trial can tell."""
    advice: dict[int, str] = field(default_factory=dict)
    """For slots of a rectangle with a size that the code gives as a number, what to write instead."""
    comparisons: tuple[Source, ...] = ()
    """Pairs of sizes that the network's code found equal."""
    factors: list[Factor] = field(default_factory=list)
    """Numbers made from sizes, by which operators multiply."""
    axes: AxisChoices = field(default_factory=AxisChoices)
    """Which axes of rectangles stay free."""


@dataclass(frozen=True)
class Hints:
    """What is known before propagation.

    Attributes:
        axes: for operators that split a rectangle, the axis to leave free, by node name, unless objected to.
        settled: as ``axes``, for operators to which no other one can object.
        open_axes: where given, all axes of rectangles are left open, and what they are used for is recorded
            there.
        sizes: for operators that take sizes, where these come from, by node name.
        refused: operators whose fixed numbers were shown not to follow the widths.
        tensors: names of parameters and buffers, by the node that stands for them.
        unread: operators whose results nothing reads.
        weights: operators that compute a weight from other weights, whatever the inputs are.
        distances: operators that sum squares of weights, as parts of distances.
        constants: values of tensors that are neither parameters, buffers nor inputs, by the node that stands
            for them.
    """

    axes: Mapping[str, int] = field(default_factory=dict)
    settled: Mapping[str, int] = field(default_factory=dict)
    open_axes: OpenAxes | None = None
    sizes: Mapping[str, tuple[Source | None, ...]] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    distances: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    tensors: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
