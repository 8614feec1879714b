"""Describe where a size in a program comes from: an attribute, a tensor's size, or arithmetic with these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

AttributeKey = tuple[str, str, int | None]
"""Module, name and place of an attribute."""


@dataclass(frozen=True)
class FromAttribute:
    """An integer attribute of a module, or an entry of a list or tuple of them.

    Attributes:
        module: path of the module.
        name: of the attribute; ``config.heads`` for an integer in an object that the module keeps.
        index: place in the attribute's value if that is a list or tuple.
        value: the integer.
        of_class: whether it is an attribute of the class, not of the module itself.
    """

    module: str
    name: str
    index: int | None
    value: int = field(default=0, compare=False)
    of_class: bool = field(default=False, compare=False)

    @property
    def key(self) -> AttributeKey:
        """Return what identifies the attribute."""
        return self.module, self.name, self.index


@dataclass(frozen=True)
class FromTensor:
    """The size of a dimension of an operator's result, or of a parameter or buffer.

    Attributes:
        node: name of the operator in the program, empty for a parameter or buffer.
        tensor: qualified name of the parameter or buffer, empty for an operator.
        result: number of the result, for operators with several.
        dim: the dimension.
    """

    node: str
    tensor: str
    result: int
    dim: int


@dataclass(frozen=True)
class Computed:
    """A sum, difference, product, quotient, remainder or comparison of sizes."""

    operator: str
    left: Source | int
    right: Source | int


@dataclass(frozen=True)
class Power:
    """A number that is proportional to a power of a size."""

    base: Source
    power: float


Source = FromAttribute | FromTensor | Computed | Power
"""Where an integer comes from."""

Sizes = Mapping[str, tuple[Source | None, ...]]
"""For each operator that takes sizes, by node name, where each of them comes from.

Under the empty name are the pairs of sizes that the network's code compared and found equal."""


def parts_of(source: Source | int) -> Iterator[FromAttribute | FromTensor]:
    """List all attributes and sizes of tensors of an expression, from left to right."""
    if isinstance(source, FromAttribute | FromTensor):
        yield source
    elif isinstance(source, Power):
        yield from parts_of(source.base)
    elif isinstance(source, Computed):
        yield from parts_of(source.left)
        yield from parts_of(source.right)


def attributes_in(source: Source | int) -> Iterator[FromAttribute]:
    """List all attributes of an expression, from left to right."""
    return (part for part in parts_of(source) if isinstance(part, FromAttribute))
