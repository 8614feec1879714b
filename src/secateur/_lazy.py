"""Import the public names of a package on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Create ``__getattr__`` and ``__dir__`` of a package whose names are imported on first use.

    So modules of the package that do not need PyTorch are imported without the others.

    Args:
        package: its name.
        modules: by module of the package, the names to import from it, separated by spaces.

    Example:
        >>> get, names = lazy_names("secateur", {"errors": "UsageError SecateurError"})
        >>> get("UsageError").__name__, names()
        ('UsageError', ['SecateurError', 'UsageError'])
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(module_of)
