"""Find what code of the user's may write to outside of a network: globals, closures, classes, caches.

A class or a function is searched once, and only the places are kept, as weak references: what they hold is
looked up whenever the state is recorded (:mod:`secateur.untouched`).
"""

from __future__ import annotations

import inspect
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import _lru_cache_wrapper, lru_cache
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

_STEPS = 3
"""How often a name in a function is followed to another function or class."""

_ENTRIES = frozenset(("forward", "train"))
"""Methods of a network that are called from outside."""

_FOREIGN = ("torch", "numpy", "logging", "threading", "builtins", "concurrent", "multiprocessing", "secateur")
"""Packages whose objects are not followed: they are not state of a network."""

_PLAIN = frozenset((int, float, bool, str, bytes, complex, type(None)))

Code: TypeAlias = "type | FunctionType | _lru_cache_wrapper[Any]"
"""What may refer to other places by name."""


@dataclass(frozen=True)
class Variables:
    """Some global variables of one file.

    Attributes:
        owner: a function of that file, or the file itself.
        names: of the variables.
    """

    owner: ref[FunctionType | ModuleType]
    names: tuple[str, ...]

    def found(self) -> Iterator[tuple[dict[str, Any], str]]:
        """List the dictionary and the name of each variable that is there."""
        owner = self.owner()
        if owner is not None:
            place = vars(owner) if isinstance(owner, ModuleType) else owner.__globals__
            yield from ((place, name) for name in self.names if name in place)


@dataclass(frozen=True)
class CodeState:
    """The places to which a class or a function, and what it refers to, may write.

    Attributes:
        classes: whose attributes may change.
        functions: with closures or default arguments that hold values.
        variables: global variables that hold values.
        caches: cached functions.
    """

    classes: tuple[ref[type], ...]
    functions: tuple[ref[FunctionType], ...]
    variables: tuple[Variables, ...]
    caches: tuple[ref[_lru_cache_wrapper[Any]], ...]


_KNOWN: WeakKeyDictionary[Any, CodeState] = WeakKeyDictionary()


def code_state(root: Code) -> CodeState:
    """Find the places to which a class or a function may write.

    Functions and classes of other packages than PyTorch, NumPy and the standard library are followed up to
    three steps from one to the next. Methods of a network that its forward pass does not name are not
    followed further.

    Args:
        root: a class, a function or a cached function.

    Example:
        >>> table = {}
        >>> def look_up(key):
        ...     return table.get(key)
        >>> look_up.__module__ = "own"  # code of this package is not followed
        >>> [variables.names for variables in code_state(look_up).variables]
        [('table',)]
    """
    try:
        if root not in _KNOWN:
            _KNOWN[root] = _search(root)
        return _KNOWN[root]
    except TypeError:  # a class whose metaclass makes it unhashable
        return _search(root)


def is_code(value: Any) -> bool:
    """Return whether a value is a class, a function or a cached function."""
    return isinstance(value, type | FunctionType | _lru_cache_wrapper)


@lru_cache(maxsize=10_000)
def is_library(module: str) -> bool:
    """Return whether a module is of a package whose objects are no state of a network.

    Args:
        module: its name.

    >>> is_library("torch.nn"), is_library("functools"), is_library("einops")
    (True, True, False)
    """
    package = str(module).partition(".")[0]
    return package in _FOREIGN or package in sys.stdlib_module_names


def is_foreign(cls: type) -> bool:
    """Return whether a class is of a package whose objects are not followed."""
    return str(cls.__module__).partition(".")[0] in _FOREIGN


def _search(root: Code) -> CodeState:
    """Follow names from function to function."""
    classes: list[ref[type]] = []
    functions: list[ref[FunctionType]] = []
    variables: list[Variables] = []
    caches: list[ref[_lru_cache_wrapper[Any]]] = []
    left, seen = deque[tuple[Any, int]]([(root, 0)]), set[int]()
    while left:
        item, step = left.popleft()
        if id(item) in seen or step > _STEPS:
            continue
        seen.add(id(item))
        if isinstance(item, _lru_cache_wrapper):
            caches.append(ref(item))
            left.append((item.__wrapped__, step))
        elif is_library(item.__module__):
            continue
        elif isinstance(item, type):
            own = [cls for cls in item.__mro__ if not is_library(cls.__module__)]
            classes.extend(map(ref, own))
            seen.update(map(id, own))
            methods = [pair for cls in own for pair in _methods(cls)]
            reached = _reached(methods)
            left.extend((held, step if name in reached else _STEPS) for name, held in methods)
        else:
            values = [*_enclosed(item), *(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
            left.extend((value, step) for value in values if is_code(value))
            if item.__closure__ or any(type(value) not in _PLAIN for value in values):
                functions.append(ref(item))
            for owner in _files(item):
                place = vars(owner) if isinstance(owner, ModuleType) else item.__globals__
                named = {name: place[name] for name in _referred(item.__code__) & place.keys()}
                left.extend((value, step + 1) for value in named.values() if is_code(value))
                held = tuple(name for name, value in named.items() if _is_state(value))
                if held:
                    variables.append(Variables(ref(owner), held))
    return CodeState(tuple(classes), tuple(functions), tuple(variables), tuple(caches))


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """List the functions of a class, other than those of Python itself, with their names."""
    for name, value in vars(cls).items():
        held = getattr(value, "__func__", value)  # of a static method, or one of the class
        if not name.startswith("__") and isinstance(held, FunctionType | _lru_cache_wrapper):
            yield name, held


def _reached(methods: Sequence[tuple[str, Any]]) -> set[str]:
    """Select the methods that the entries of a network name, and those that these name, and so on.

    In a class without entries, all are selected.

    Args:
        methods: name and function of each.
    """
    names = {name for name, _ in methods}
    reached, left = set[str](), _ENTRIES & names or names
    while left:
        reached |= left
        codes = [
            inspect.unwrap(held).__code__
            for name, held in methods
            if name in left and isinstance(inspect.unwrap(held), FunctionType)
        ]
        left = frozenset().union(*map(_referred, codes)) & names - reached
    return reached


def _enclosed(function: FunctionType) -> Iterator[Any]:
    """List the values that a function's closure holds."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _files(function: FunctionType) -> Iterator[FunctionType | ModuleType]:
    """List a function, for its own file, and the files that it refers to by name."""
    yield function
    names = function.__globals__
    for name in _referred(function.__code__) & names.keys():
        module = names[name]
        if isinstance(module, ModuleType) and not is_library(module.__name__):
            yield module


def _is_state(value: Any) -> bool:
    """Return whether a global variable holds a value that code may exchange or change, and no code."""
    return not is_code(value) and not isinstance(value, BuiltinFunctionType | ModuleType | Tensor | nn.Module)


@lru_cache(maxsize=10_000)
def _referred(code: CodeType) -> frozenset[str]:
    """List the names that a function, and functions within it, look up outside it."""
    inside = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(code.co_names).union(*map(_referred, inside))
