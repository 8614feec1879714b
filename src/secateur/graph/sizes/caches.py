"""Call cached functions without their caches while sizes are recorded."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_CACHED = type(functools.lru_cache(lambda: None))


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Replace functions that ``functools.lru_cache`` wraps by the functions themselves within a block.

    A cache takes two sizes for one where their numbers are equal, and returns what it made of the first; that
    remembers where the first came from. So the functions of loaded modules and the methods of the network run
    again for each call. Those of PyTorch and of the standard library do not reshape with sizes of a network.

    Args:
        model: the network.
    """
    changed: list[tuple[Any, str, Any]] = []
    try:
        for owner in [*_modules(), *_classes(model)]:
            for name, value in list(vars(owner).items()):
                if type(value) is _CACHED:
                    changed.append((owner, name, value))
                    setattr(owner, name, value.__wrapped__)
        yield
    finally:
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)


def _modules() -> Iterator[Any]:
    """List the loaded modules of libraries and of the user."""
    for name, module in list(sys.modules.items()):
        package = name.partition(".")[0]
        if package not in ("torch", "secateur") and package not in sys.stdlib_module_names:
            yield module


def _classes(model: nn.Module) -> Iterator[type]:
    """List the classes of the modules of a network, but for those of PyTorch."""
    for kind in dict.fromkeys(kind for module in model.modules() for kind in type(module).__mro__):
        if kind.__module__.partition(".")[0] not in ("torch", "builtins"):
            yield kind
