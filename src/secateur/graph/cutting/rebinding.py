"""Make the functions that a copied module holds refer to the copy.

``copy.deepcopy`` hands functions on as they are. A ``forward`` that closes over the module, or a hook that
closes over one of its parameters, would use the original from within the copy.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import weakref
from collections import deque
from collections.abc import Mapping
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

PLAIN = frozenset((int, bool, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
"""Types that refer to nothing else."""

_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_ATOMS = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, functools.partial, weakref.ref)


def rebind(memo: Mapping[int, Any]) -> None:
    """Rebind every function that the copies of a deep copy hold.

    A function is rebuilt if its closure, its defaults or its attributes refer to an object that was copied;
    so are bound methods, partial functions, weak references, and containers on the way to it.
    What a function reaches by a global name stays as it is.

    Args:
        memo: the memo of the deep copy: copies by the ``id`` of their originals, which are still alive. The
            copies are changed in place.

    Example:
        >>> from torch import nn
        >>> def make():
        ...     net = nn.Sequential(nn.Linear(4, 2))
        ...     net.first = lambda: net[0]
        ...     return net
        >>> net, memo = make(), {}
        >>> twin = copy.deepcopy(net, memo)
        >>> twin.first() is net[0]
        True
        >>> rebind(memo)
        >>> twin.first() is twin[0], net.first() is net[0]
        (True, True)
    """
    rebinder = _Rebinder(memo)
    for key, held in list(memo.items()):
        if key != id(memo):  # there deepcopy keeps the originals alive
            rebinder.rebind_within(held)


class _Rebinder:
    """Finds what refers to the original of a deep copy, and rebuilds it.

    Args:
        memo: copies by the ``id`` of their originals.
    """

    def __init__(self, memo: Mapping[int, Any]) -> None:
        self._memo = memo
        immutable = (MethodType, functools.partial, tuple, frozenset)
        self._copies = {id(made) for made in memo.values() if not isinstance(made, immutable)}
        self._rebuilt: dict[int, Any] = {}
        self._clean: set[int] = set()  # ids of objects that lead to no original; all of them stay alive

    def rebind_within(self, held: Any) -> None:
        """Replace what one copy holds and refers to the original."""
        if isinstance(held, dict):
            self._replace(held, list(held.items()))
        elif isinstance(held, list | deque):
            self._replace(held, list(enumerate(held)))
        elif isinstance(held, set):
            for item in list(held):
                new = self.rebound(item)
                if new is not item:
                    held.remove(item)
                    held.add(new)
        if not isinstance(held, _ATOMS) and isinstance(getattr(held, "__dict__", None), dict):
            self._replace(vars(held), list(vars(held).items()))

    def _replace(self, container: Any, items: list[tuple[Any, Any]]) -> None:
        for key, value in items:
            if type(value) in PLAIN or id(value) in self._copies:
                continue
            new = self.rebound(value)
            if new is not value:
                container[key] = new

    def rebound(self, value: Any) -> Any:
        """Return an object that refers to the copy where the given one refers to the original."""
        if self._original(value):
            return self._memo[id(value)]
        if id(value) in self._rebuilt:
            return self._rebuilt[id(value)]
        return self._rebuild(value) if self._refers(value) else value

    def _original(self, value: Any) -> bool:
        return id(value) in self._memo and self._memo[id(value)] is not value and value is not self._memo

    def _refers(self, value: Any) -> bool:
        """Return whether an object leads to an original."""
        seen: set[int] = set()
        pending = [value]
        while pending:
            item = pending.pop()
            if self._original(item):
                return True
            if id(item) not in seen and id(item) not in self._clean and id(item) not in self._copies:
                seen.add(id(item))
                pending.extend(_parts(item))
        self._clean |= seen
        return False

    def _rebuild(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self._function(value)
        new: Any = value
        if isinstance(value, MethodType):
            new = MethodType(self.rebound(value.__func__), self.rebound(value.__self__))
        elif isinstance(value, functools.partial):
            keywords = {key: self.rebound(item) for key, item in value.keywords.items()}
            new = type(value)(self.rebound(value.func), *map(self.rebound, value.args), **keywords)
            new.__dict__.update({key: self.rebound(item) for key, item in vars(value).items()})
        elif type(value) is weakref.ref:
            new = weakref.ref(self.rebound(value()))
        elif isinstance(value, dict):
            new = self._rebuilt[id(value)] = copy.copy(value)
            items = [(self.rebound(key), self.rebound(item)) for key, item in value.items()]
            new.clear()
            new.update(items)
        elif isinstance(value, list | deque):
            new = self._rebuilt[id(value)] = copy.copy(value)
            for index, item in enumerate(value):
                new[index] = self.rebound(item)
        elif isinstance(value, tuple):
            parts = [self.rebound(item) for item in value]
            new = value._make(parts) if hasattr(value, "_make") else type(value)(parts)
        elif isinstance(value, set | frozenset):
            new = type(value)(self.rebound(item) for item in value)
        self._rebuilt[id(value)] = new
        return new

    def _function(self, function: FunctionType) -> FunctionType:
        """Rebuild a function with another closure."""
        cells, fresh = [], []
        for cell in function.__closure__ or ():
            if id(cell) not in self._rebuilt:
                self._rebuilt[id(cell)] = cell
                if self._refers(cell):
                    self._rebuilt[id(cell)] = CellType()
                    fresh.append(cell)
            cells.append(self._rebuilt[id(cell)])
        new = FunctionType(
            function.__code__, function.__globals__, function.__name__, closure=tuple(cells) or None
        )
        # Known before the cells are filled: a function may be in its own closure.
        self._rebuilt[id(function)] = new
        for cell in fresh:
            self._rebuilt[id(cell)].cell_contents = self.rebound(cell.cell_contents)
        new.__defaults__ = self.rebound(function.__defaults__)
        new.__kwdefaults__ = self.rebound(function.__kwdefaults__)
        new.__dict__.update({key: self.rebound(value) for key, value in vars(function).items()})
        for name in ("__qualname__", "__module__", "__doc__", "__annotations__"):
            setattr(new, name, getattr(function, name))
        return new


def _parts(value: Any) -> list[Any]:
    """List what an object holds, of the kinds that can be rebuilt."""
    if isinstance(value, CellType):
        with contextlib.suppress(ValueError):  # a cell may be empty still
            return [value.cell_contents]
        return []
    if isinstance(value, FunctionType):
        return [
            *(value.__closure__ or ()),
            value.__defaults__,
            value.__kwdefaults__,
            *vars(value).values(),
        ]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values(), *vars(value).values()]
    if type(value) is weakref.ref:
        return [value()]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, _CONTAINERS):
        return list(value)
    return []
