"""Read and set integer attributes of modules, and of configuration objects and dicts that modules hold.

An attribute is named relative to its module: ``num_heads``, or ``config.num_heads`` for an integer in an
object or a dict that the module keeps. What several modules share is known by the module that comes first.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from torch import Tensor, nn

_DEPTH = 2
"""How many objects may lie between a module and an integer."""

_MOST_ENTRIES = 100
"""A larger dict is a table, such as a vocabulary, and no configuration."""

_NOT_USERS = ("torch", "builtins")
"""Packages whose classes hold no sizes of a network."""

_NO_OBJECTS = (
    nn.Module,
    Tensor,
    Enum,
    type,
    types.FunctionType,
    types.MethodType,
    types.ModuleType,
    types.BuiltinFunctionType,
)


def integer_attributes(model: nn.Module) -> Iterator[tuple[str, str, int | list[int] | tuple[int, ...]]]:
    """List the integers of a network's modules, and the lists and tuples of integers.

    Names that begin with an underscore belong to PyTorch or are private, and are left out.

    Yields:
        Path of the module, name of the attribute, and its value.

    Example:
        >>> from types import SimpleNamespace
        >>> net = nn.Identity()
        >>> net.config = SimpleNamespace(heads=4, sizes=(2, 3), name="net")
        >>> net.widths = {"hidden": 8, 3: 4}
        >>> list(integer_attributes(net))
        [('', 'config.heads', 4), ('', 'config.sizes', (2, 3)), ('', 'widths.hidden', 8)]

    Integers of a class are among them: a cut sets an attribute of the module, and the class stays as it is.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in _integers(module, "", 0, seen):
            yield path, name, value


def _integers(owner: object, prefix: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    entries = owner if isinstance(owner, dict) else {**_integers_of_class(type(owner)), **vars(owner)}
    for name, value in list(entries.items()):
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or name == "training":
            continue
        if is_integral(value):
            yield prefix + name, value
        elif depth < _DEPTH and is_configuration(value) and id(value) not in seen:
            seen.add(id(value))
            yield from _integers(value, f"{prefix}{name}.", depth + 1, seen)


def _integers_of_class(kind: type) -> dict[str, Any]:
    """Collect the integers that a class of the user gives its objects, and its lists and tuples of them."""
    classes = [cls for cls in reversed(kind.__mro__) if cls.__module__.partition(".")[0] not in _NOT_USERS]
    return {name: value for cls in classes for name, value in vars(cls).items() if is_integral(value)}


def is_of_class(owner: object, name: str) -> bool:
    """Return whether an attribute is one of the class, which the object itself does not have."""
    return not isinstance(owner, dict) and name not in vars(owner)


def is_integral(value: object) -> bool:
    """Return whether a value is an integer, or a list or tuple of integers, without truth values."""
    if type(value) in (list, tuple):
        return bool(value) and all(type(item) is int for item in value)  # type: ignore[attr-defined]
    return type(value) is int


def is_configuration(value: object) -> bool:
    """Return whether a value is an object or a dict that may hold sizes."""
    if isinstance(value, dict):
        return len(value) <= _MOST_ENTRIES
    if isinstance(value, _NO_OBJECTS) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in _NOT_USERS


def attribute_of(module: Any, name: str) -> Any:
    """Read an attribute; ``None`` if there is none.

    Args:
        module: the module, or another object.
        name: the attribute's name, with the names of the objects and dicts on the way to it.
    """
    found: Any = module
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
    return found


def owner_of(module: nn.Module, name: str) -> Any:
    """Find the module, object or dict that holds an attribute; ``None`` if there is none."""
    path, _, _ = name.rpartition(".")
    return attribute_of(module, path) if path else module


def separate(model: nn.Module, module: nn.Module, name: str) -> Callable[[], None]:
    """Give a network its own copy of the objects and dicts on the way to an attribute.

    A configuration may be shared with other networks, which must not change along.

    Args:
        model: the network; all of its modules that hold the object get the copy.
        module: the module of the attribute.
        name: the attribute's name, with the names of the objects and dicts on the way to it.

    Returns:
        A function that puts the shared object back.
    """
    first, *inner, _ = name.split(".") if "." in name else ("", "")
    shared = vars(module).get(first)
    if not first or shared is None:
        return lambda: None
    own = copy.copy(shared)
    holder = own
    for part in inner:
        own_part = copy.copy(attribute_of(holder, part))
        _put(holder, part, own_part)
        holder = own_part
    places = [
        (vars(item), key) for item in model.modules() for key, value in vars(item).items() if value is shared
    ]
    for attributes, key in places:
        attributes[key] = own

    def undo() -> None:
        for attributes, key in places:
            attributes[key] = shared

    return undo


def set_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute, also of a dict or a frozen data class.

    Args:
        module: the module.
        name: the attribute's name, with the names of the objects and dicts on the way to it.
        value: the new value.
    """
    _put(owner_of(module, name), name.rpartition(".")[2], value)


def _put(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
        return
    try:
        setattr(owner, name, value)
    except AttributeError:
        object.__setattr__(owner, name, value)
