"""Define numbers that remember which size they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from secateur.graph.propagation.size_source import Computed, Power

EqualSizes = list[tuple[Any, Any]]
"""Sources of pairs of sizes that code found equal."""

_EQUAL: ContextVar[EqualSizes | None] = ContextVar("_EQUAL", default=None)


@contextmanager
def recorded_equalities() -> Iterator[EqualSizes]:
    """Record within a block which sizes the code compares and finds equal.

    A comparison gives a plain truth value, which cannot carry a source, so it is recorded beside.
    """
    found: EqualSizes = []
    token = _EQUAL.set(found)
    try:
        yield found
    finally:
        _EQUAL.reset(token)


class Size(int):
    """An integer that remembers where it comes from, through arithmetic with other integers."""

    source: Any

    def __new__(cls, value: int, source: Any) -> Size:
        """Create a number with its source."""
        size = super().__new__(cls, value)
        size.source = source
        return size

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        if isinstance(other, float):
            return Proportional(float(self) ** other, self.source, other)
        if modulo is None and isinstance(other, int) and 1 <= other <= 4:
            result: Any = self
            for _ in range(other - 1):
                result = result * self
            return result
        return int.__pow__(self, other, modulo)

    def __truediv__(self, other: Any) -> Any:
        plain = int.__truediv__(self, other) if isinstance(other, int) else NotImplemented
        return plain if plain is NotImplemented else Proportional(plain, self.source, 1.0)

    def __rtruediv__(self, other: Any) -> Any:
        return (
            Proportional(other / int(self), self.source, -1.0)
            if isinstance(other, int | float)
            else NotImplemented
        )

    def __neg__(self) -> Size:
        return Size(-int(self), Computed("sub", 0, self.source))

    def __eq__(self, other: object) -> bool:
        equal = int(self) == other
        recorded = _EQUAL.get()
        if equal and recorded is not None and isinstance(other, Size):
            recorded.append((self.source, other.source))
        return equal

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> Size:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class Proportional(float):
    """A number that remembers the size that it is proportional to a power of."""

    source: Any

    def __new__(cls, value: float, base: Any, power: float) -> Proportional:
        """Make a size from a number, its source, and the power."""
        number = super().__new__(cls, value)
        number.source = Power(base, power)
        return number

    def _scaled(self, value: Any, power: float) -> Any:
        if value is NotImplemented:
            return value
        return Proportional(value, self.source.base, self.source.power * power)

    def __mul__(self, other: Any) -> Any:
        return self._scaled(float.__mul__(self, other), 1.0)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self._scaled(float.__truediv__(self, other), 1.0)

    def __rtruediv__(self, other: Any) -> Any:
        return self._scaled(float.__rtruediv__(self, other), -1.0)

    def __pow__(self, other: Any, modulo: None = None) -> Any:
        known = isinstance(other, int | float)
        return self._scaled(float.__pow__(self, other), float(other)) if known else NotImplemented

    def __deepcopy__(self, memo: dict[int, Any]) -> Proportional:
        return self


def _arithmetic(operator: str) -> None:
    plain: Callable[[int, int], Any] = getattr(int, operator)
    reflected: Callable[[int, int], Any] = getattr(int, operator.replace("__", "__r", 1))

    def forward(self: Size, other: Any) -> Any:
        if operator == "__mul__" and isinstance(other, float):
            return Proportional(float(self) * other, self.source, 1.0)
        return _computed(plain(self, other), operator, self, other)

    def backward(self: Size, other: Any) -> Any:
        if operator == "__mul__" and isinstance(other, float):
            return forward(self, other)
        return _computed(reflected(self, other), operator, other, self)

    setattr(Size, operator, forward)
    setattr(Size, operator.replace("__", "__r", 1), backward)


for _operator in ("__add__", "__sub__", "__mul__", "__floordiv__", "__mod__"):
    _arithmetic(_operator)


def _computed(result: Any, operator: str, left: Any, right: Any) -> Any:
    if result is NotImplemented:
        return result
    sources = [item.source if isinstance(item, Size) else int(item) for item in (left, right)]
    if operator == "__mul__" and 0 in sources:
        return 0
    return Size(result, Computed(operator.strip("_"), *sources))
