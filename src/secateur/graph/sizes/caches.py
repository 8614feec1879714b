"""Call cached functions without their caches while sizes are recorded."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from secateur.code_state import is_library
from secateur.graph.sizes.traced import Size

_CACHED = functools._lru_cache_wrapper


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Replace functions that ``functools.lru_cache`` wraps by others that cache within a block alone.

    A cache takes two sizes for one where their numbers are equal, and returns what it made of the first; that
    remembers where the first came from. So the functions of loaded modules and the methods of the network run
    again, once for all sizes of one origin. Those of PyTorch and of the standard library do not reshape with
    sizes of a network.

    Args:
        model: the network.
    """
    changed: list[tuple[Any, str, Any]] = []
    try:
        for owner in [*_modules(), *_classes(model)]:
            for name, value in list(getattr(owner, "__dict__", {}).items()):
                if type(value) is not _CACHED:
                    continue
                # What cannot be replaced keeps its cache.
                with suppress(Exception):
                    setattr(owner, name, _with_origins(value))
                    changed.append((owner, name, value))
        yield
    finally:
        for owner, name, value in reversed(changed):
            with suppress(Exception):
                setattr(owner, name, value)


def _with_origins(cached: Any) -> Callable[..., Any]:
    """Wrap the function of a cache by a new one that tells sizes of different origins apart."""
    known: dict[Any, Any] = {}

    @functools.wraps(cached.__wrapped__)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = _key((args, tuple(kwargs.items())))
        try:
            if key in known:
                return known[key]
        except TypeError:  # an argument that no dictionary takes; the cache would refuse it too
            return cached.__wrapped__(*args, **kwargs)
        known[key] = found = cached.__wrapped__(*args, **kwargs)
        return found

    vars(call).update(
        cache_info=cached.cache_info, cache_clear=cached.cache_clear, cache_parameters=cached.cache_parameters
    )
    return call


def _key(value: Any) -> Any:
    """Make of arguments a key that holds the origins of sizes."""
    if isinstance(value, Size):
        return Size, int(value), value.source
    if isinstance(value, tuple):
        return type(value), tuple(map(_key, value))
    return type(value), value


def _modules() -> Iterator[Any]:
    """List the loaded modules of libraries and of the user."""
    return (module for name, module in list(sys.modules.items()) if not is_library(name))


def _classes(model: nn.Module) -> Iterator[type]:
    """List the classes of the modules of a network, but for those of libraries that are left out."""
    kinds = dict.fromkeys(kind for module in model.modules() for kind in type(module).__mro__)
    return (kind for kind in kinds if not is_library(kind.__module__))
