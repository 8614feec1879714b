"""Integer attributes of modules, and of the configuration objects that modules hold.

An attribute is named as code reads it, relative to its module: ``num_heads``, or ``config.num_heads``
for an integer in an object that the module keeps. An object that several modules share is known by
the module that comes first.
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
    """Lists the integers of a network's modules, and the lists and tuples of integers.

    Names that begin with an underscore belong to PyTorch or are private, and are left out.

    Yields:
        Path of the module, name of the attribute, and its value.

    Example:
        >>> from types import SimpleNamespace
        >>> net = nn.Identity()
        >>> net.config = SimpleNamespace(heads=4, sizes=(2, 3), name="net")
        >>> list(integer_attributes(net))
        [('', 'config.heads', 4), ('', 'config.sizes', (2, 3))]
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in _integers(module, "", 0, seen):
            yield path, name, value


def _integers(owner: object, prefix: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(owner).items()):
        if name.startswith("_") or name == "training":
            continue
        if is_integral(value):
            yield prefix + name, value
        elif depth < _DEPTH and is_configuration(value) and id(value) not in seen:
            seen.add(id(value))
            yield from _integers(value, f"{prefix}{name}.", depth + 1, seen)


def is_integral(value: object) -> bool:
    """Tells whether a value is an integer, or a list or tuple of integers; truth values are none."""
    if type(value) in (list, tuple):
        return bool(value) and all(type(item) is int for item in value)  # type: ignore[attr-defined]
    return type(value) is int


def is_configuration(value: object) -> bool:
    """Tells whether a value is an object with attributes of its own that may hold sizes."""
    if isinstance(value, _NO_OBJECTS) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in ("torch", "builtins")


def attribute_of(module: nn.Module, name: str) -> Any:
    """Reads an attribute; ``None`` if there is none.

    Args:
        module: the module.
        name: the attribute's name, with the names of the objects on the way to it.
    """
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def separate(model: nn.Module, module: nn.Module, name: str) -> Callable[[], None]:
    """Give a network its own copy of the objects on the way to an attribute.

    A configuration object may be shared with other networks, which must not change along.

    Args:
        model: the network; all of its modules that hold the object get the copy.
        module: the module of the attribute.
        name: the attribute's name, with the names of the objects on the way to it.

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
        part_of_own = copy.copy(getattr(holder, part))
        object.__setattr__(holder, part, part_of_own)
        holder = part_of_own
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
    """Sets an attribute, also of a frozen data class.

    Args:
        module: the module.
        name: the attribute's name, with the names of the objects on the way to it.
        value: the new value.
    """
    path, _, leaf = name.rpartition(".")
    owner = attribute_of(module, path) if path else module
    try:
        setattr(owner, leaf, value)
    except AttributeError:
        object.__setattr__(owner, leaf, value)
