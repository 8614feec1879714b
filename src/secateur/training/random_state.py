"""Seed the random generators for a block, and save and restore their states."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and PyTorch for a block, and restore their generators afterwards.

    Args:
        seed: any integer in [0, 2**32).

    >>> with seeded(3):
    ...     first = torch.rand(2)
    >>> with seeded(3):
    ...     second = torch.rand(2)
    >>> torch.equal(first, second)
    True
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # data sets may use it
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of the global generators of Python, NumPy and PyTorch, on all devices in use.

    Returns:
        Tensors by generator, and what else belongs to the states, as plain values.
    """
    states = {"cpu": torch.get_rng_state()}
    for kind, module in _accelerators().items():
        states |= {f"{kind}.{number}": state for number, state in enumerate(module.get_rng_state_all())}
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    _, words, python = random.getstate()
    _, keys, *numpy = _numpy_state()
    states["python"] = torch.tensor(words, dtype=torch.int64)
    states["numpy"] = torch.from_numpy(keys.astype(np.int64))
    return states, {"python": python, "numpy": [float(number) for number in numpy]}


def set_random_states(states: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Restore what :func:`random_states` returned, as far as there are such devices here."""
    torch.set_rng_state(states["cpu"])
    for kind, module in _accelerators().items():
        for number in range(module.device_count()):
            if f"{kind}.{number}" in states:
                module.set_rng_state(states[f"{kind}.{number}"], number)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
    if "python" in states:
        random.setstate((3, tuple(states["python"].tolist()), facts["python"]))
    if "numpy" in states:
        place, has_normal, normal = facts["numpy"]
        keys = states["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, int(place), int(has_normal), normal))  # noqa: NPY002


def _numpy_state() -> tuple[str, Any, int, int, float]:
    """Return kind, keys, place, and whether a second normal number is kept, with that number."""
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002  # the generator of code without its own
    return tuple(state)


def _accelerators() -> dict[str, Any]:
    """Return the kinds of devices that have generators and are in use, with PyTorch's module for each."""
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu}
    return {
        kind: module for kind, module in kinds.items() if module.is_available() and module.is_initialized()
    }
