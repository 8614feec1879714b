"""Find what code of the user's may write to outside of a network: globals, closures, classes, caches.

A class or a function is searched once, and only the places are kept, as weak references: what they hold is
looked up whenever the state is recorded (:mod:`secateur.untouched`).
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import _lru_cache_wrapper, lru_cache, singledispatchmethod
from heapq import heappop, heappush
from importlib.util import resolve_name
from itertools import count
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

_STEPS = 3
"""How often a name in a function is followed to another function or class."""

_ENTRIES = frozenset(("forward", "train", "backward", "setup_context", "jvp", "vjp"))
"""Methods of networks and of differentiable functions that are called from outside."""

_OPERATORS = frozenset(("__call__", "__getattr__", "__getitem__", "__enter__", "__exit__"))
"""Methods of Python itself that a forward pass may call without naming them."""

_BUILDING = frozenset(("__init__", "__init_subclass__", "__new__", "__class_getitem__", "__set_name__"))
"""Methods of Python itself that do not run in a forward pass, as objects are there already."""

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
        """List the dictionary and the name of each variable, which may not be there."""
        owner = self.owner()
        if owner is not None:
            place = vars(owner) if isinstance(owner, ModuleType) else owner.__globals__
            yield from ((place, name) for name in self.names)


@dataclass(frozen=True)
class CodeState:
    """The places to which a class or a function, and what it refers to, may write.

    Attributes:
        classes: whose attributes may change.
        functions: with closures, default arguments or attributes that hold values.
        variables: global variables that hold values.
        caches: cached functions.
        assigned: names of the attributes of objects that the code assigns.
        files: functions that may write to any global variable of their file, as they call ``globals``.
        missing: modules that functions import and that are not loaded yet.
    """

    classes: tuple[ref[type], ...]
    functions: tuple[ref[FunctionType], ...]
    variables: tuple[Variables, ...]
    caches: tuple[ref[_lru_cache_wrapper[Any]], ...]
    assigned: frozenset[str]
    files: tuple[ref[FunctionType], ...]
    missing: frozenset[str]


_Known = WeakKeyDictionary[Any, CodeState]
_KNOWN: dict[bool, _Known] = {False: WeakKeyDictionary(), True: WeakKeyDictionary()}


def code_state(root: Code, *, every: bool = False) -> CodeState:
    """Find the places to which a class or a function may write.

    Functions and classes of other packages than PyTorch, NumPy and the standard library are followed up to
    three steps from one to the next, also those that a function imports while it runs. Methods of a network
    that its forward pass does not name are not followed further, unless that looks names up itself.

    Args:
        root: a class, a function or a cached function.
        every: follow all methods of a network, as something else than its forward pass may call them.

    Example:
        >>> table = {}
        >>> def look_up(key):
        ...     return table.get(key)
        >>> look_up.__module__ = "own"  # code of this package is not followed
        >>> [variables.names for variables in code_state(look_up).variables]
        [('table',)]
    """
    try:
        known = _KNOWN[every].get(root)
        if known is None or any(name in sys.modules for name in known.missing):
            known = _KNOWN[every][root] = _search(root, every)
        return known
    except TypeError:  # a class whose metaclass makes it unhashable
        return _search(root, every)


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


def _search(root: Code, every: bool) -> CodeState:
    """Follow names from function to function."""
    classes: list[ref[type]] = []
    functions: list[ref[FunctionType]] = []
    variables: list[Variables] = []
    caches: list[ref[_lru_cache_wrapper[Any]]] = []
    assigned: set[str] = set()
    files: list[ref[FunctionType]] = []
    missing: set[str] = set()
    left: list[tuple[int, int, Any]] = [(0, 0, root)]  # by steps: the shortest way to a function counts
    order, seen = count(1), set[int]()

    def follow(items: Iterable[Any], step: int) -> None:
        for item in items:
            if is_code(item) and step <= _STEPS:
                heappush(left, (step, next(order), item))

    while left:
        step, _, item = heappop(left)
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, _lru_cache_wrapper):
            caches.append(ref(item))
            follow([item.__wrapped__], step)
        elif is_library(item.__module__):
            continue
        elif isinstance(item, type):
            own = [cls for cls in item.__mro__ if not is_library(cls.__module__)]
            classes.extend(map(ref, own))
            seen.update(map(id, own))
            methods = [pair for cls in own for pair in _methods(cls)]
            reached = {name for name, _ in methods} if every else _reached(methods)
            for name, held in methods:
                follow([held], step if name in reached else _STEPS)
        else:
            values = _own_values(item)
            follow(values, step)
            referred = _referred(item.__code__)
            own_name = item.__name__ in referred  # it may keep something in its attributes
            if own_name or vars(item) or item.__closure__ or any(type(x) not in _PLAIN for x in values):
                functions.append(ref(item))
            assigned |= _assigned(item.__code__, "STORE_ATTR")
            if "globals" in referred:
                files.append(ref(item))
            missing |= _imported(item) - sys.modules.keys()
            found, named = _named(item)
            variables += found
            follow(named, step + 1)
    return CodeState(
        classes=tuple(classes),
        functions=tuple(functions),
        variables=tuple(variables),
        caches=tuple(caches),
        assigned=frozenset(assigned),
        files=tuple(files),
        missing=frozenset(missing),
    )


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """List the methods of a class with their names, except constructors."""
    for name, value in vars(cls).items():
        held = getattr(value, "__func__", value)  # of a static method, or one of the class
        if isinstance(held, property):
            found = [held.fget, held.fset]
        elif isinstance(held, singledispatchmethod):
            found = [held.dispatcher]
        else:
            found = [getattr(held, "func", held)]
        for function in found:
            if name not in _BUILDING and isinstance(function, FunctionType | _lru_cache_wrapper):
                yield name, function


def _reached(methods: Sequence[tuple[str, Any]]) -> set[str]:
    """Select the methods that the entries of a network name, and those that these name, and so on.

    In a class without entries, all are selected; so they are where code looks methods up by computed names.

    Args:
        methods: name and function of each.
    """
    names = {name for name, _ in methods}
    if not _ENTRIES & names:
        return names
    reached = set[str]()
    left: Set[str] = names & (_ENTRIES | _OPERATORS)
    while left:
        reached |= left
        codes = [
            inspect.unwrap(held).__code__
            for name, held in methods
            if name in left and isinstance(inspect.unwrap(held), FunctionType)
        ]
        named = frozenset().union(*map(_referred, codes))
        if "getattr" in named and "forward" in left:
            return names
        left = named & names - reached
    return reached


def enclosed(function: FunctionType) -> Iterator[Any]:
    """List the values that a function's closure holds."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _own_values(function: FunctionType) -> list[Any]:
    """List what a function holds: in its closure, default arguments, attributes and implementations."""
    values = [*enclosed(function), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*values, *vars(function).values(), *_registered(function)]


def _named(function: FunctionType) -> tuple[list[Variables], list[Any]]:
    """Find the global variables that a function may write to, and what else it refers to by name."""
    variables, others = list[Variables](), list[Any]()
    for owner in _files(function):
        place = vars(owner) if isinstance(owner, ModuleType) else function.__globals__
        named = {name: place[name] for name in _referred(function.__code__) & place.keys()}
        others += named.values()
        held = {name for name, value in named.items() if is_state(value)}
        if owner is function:
            held |= _assigned(function.__code__, "STORE_GLOBAL")
        if held:
            variables.append(Variables(ref(owner), tuple(held)))
    return variables, others


def _registered(function: FunctionType) -> Iterator[Any]:
    """List the implementations of a function of ``functools.singledispatch``."""
    registry = vars(function).get("registry")
    if isinstance(registry, MappingProxyType):
        yield from registry.values()


def _files(function: FunctionType) -> Iterator[FunctionType | ModuleType]:
    """List a function, for its own file, and the files that it refers to by name or imports."""
    yield function
    referred, seen = _referred(function.__code__), set[int]()
    left = [sys.modules.get(name) for name in sorted(_imported(function))]
    left += [function.__globals__[name] for name in referred & function.__globals__.keys()]
    while left:
        module = left.pop()
        if isinstance(module, ModuleType) and not is_library(module.__name__) and id(module) not in seen:
            seen.add(id(module))
            yield module
            left += [vars(module)[name] for name in referred & vars(module).keys()]


def _imported(function: FunctionType) -> frozenset[str]:
    """List the full names of the modules that a function, or one within it, imports while it runs."""
    package = function.__globals__.get("__package__") or ""
    found = set()
    for level, name in _imports(function.__code__):
        try:
            found.add(resolve_name("." * level + name, package))
        except ImportError:  # it will fail in the function as well
            continue
    return frozenset(name for name in found if not is_library(name))


@lru_cache(maxsize=10_000)
def _imports(code: CodeType) -> frozenset[tuple[int, str]]:
    """List what a function, and functions within it, import: number of leading dots, and name."""
    inside = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    steps = [step for step in _instructions(code, "IMPORT_NAME") if step.opname != "EXTENDED_ARG"]
    # The number of dots and the imported names are loaded just before.
    own = {
        (steps[place - 2].argval, step.argval)
        for place, step in enumerate(steps)
        if step.opname == "IMPORT_NAME"
    }
    return frozenset(own).union(*map(_imports, inside))


def is_state(value: Any) -> bool:
    """Return whether a global variable holds a value that code may exchange or change, and no code."""
    return not is_code(value) and not isinstance(value, BuiltinFunctionType | ModuleType)


@lru_cache(maxsize=10_000)
def _referred(code: CodeType) -> frozenset[str]:
    """List the names that a function, and functions within it, look up outside it."""
    inside = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(code.co_names).union(*map(_referred, inside))


@lru_cache(maxsize=10_000)
def _assigned(code: CodeType, operation: str) -> frozenset[str]:
    """List the names that a function, and functions within it, assign by an operation of Python.

    Args:
        code: of the function.
        operation: ``STORE_GLOBAL`` for global variables, ``STORE_ATTR`` for attributes of objects.
    """
    inside = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    own = (step.argval for step in _instructions(code, operation) if step.opname == operation)
    return frozenset(own).union(*(_assigned(one, operation) for one in inside))


def _instructions(code: CodeType, operation: str) -> Iterable[dis.Instruction]:
    """List the instructions of a function if an operation is one of them; most functions lack it."""
    codes = code.co_code[::2]  # every second byte is an argument
    return dis.get_instructions(code) if dis.opmap[operation] in codes else ()
