"""Everything that training changes, taken down and put back bit for bit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.errors import CheckpointError
from secateur.training.journal import Entry

_MODEL, _OPTIMIZER, _CHANCE = "model.", "optimizer.", "chance."


def snapshot(model: nn.Module, optimizer: Optimizer) -> Entry:
    """Weights, the state of the optimizer, and that of all random generators, copied.

    Generators are those of Python, NumPy and PyTorch, on every device that is in use.

    Args:
        model: the network.
        optimizer: of its parameters.

    Returns:
        Tensors, and what else the optimizer keeps for each parameter.
    """
    tensors = {_MODEL + name: value.detach().clone() for name, value in model.state_dict().items()}
    plain: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{name}/{key}"] = value.detach().clone()
            else:
                plain.setdefault(name, {})[key] = value
    for name, generator in _generators().items():
        tensors[_CHANCE + name] = generator
    _, _, odd = random.getstate()
    _, _, *numpy_rest = _numpy_state()
    chance = {"python": odd, "numpy": [float(number) for number in numpy_rest]}
    return Entry({"optimizer": plain, "chance": chance}, tensors)


def restore(entry: Entry, model: nn.Module, optimizer: Optimizer) -> None:
    """Puts back what :func:`snapshot` took down.

    Args:
        entry: the snapshot; may hold more.
        model: of the same sizes; changed in place.
        optimizer: of its parameters; its state is replaced.

    Raises:
        CheckpointError: the network has other tensors.
    """
    weights = under(_MODEL, entry.tensors)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"what was kept belongs to another network: {str(error).splitlines()[-1].strip()}"
        ) from error
    optimizer.state.clear()
    kept = under(_OPTIMIZER, entry.tensors)
    for name, parameter in model.named_parameters():
        state: dict[str, Any] = dict(entry.facts["optimizer"].get(name, {}))
        for key, value in under(f"{name}/", kept).items():
            state[key] = value.to(parameter.device if value.shape == parameter.shape else value.device)
        if state:
            optimizer.state[parameter] = state
    chance = under(_CHANCE, entry.tensors)
    _set_generators(chance, entry.facts.get("chance", {}))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it.

    >>> under("a.", {"a.b": torch.zeros(1), "c": torch.ones(1)})
    {'b': tensor([0.])}
    """
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _generators() -> dict[str, Tensor]:
    """The states of all generators that code may draw from without asking for one of its own."""
    states = {"cpu": torch.get_rng_state()}
    for kind, module in _accelerators().items():
        states |= {f"{kind}.{number}": state for number, state in enumerate(module.get_rng_state_all())}
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    states["python"] = torch.tensor(random.getstate()[1], dtype=torch.int64)
    states["numpy"] = torch.from_numpy(_numpy_state()[1].astype(np.int64))
    return states


def _numpy_state() -> tuple[str, Any, int, int, float]:
    """Kind, keys, place, and whether half a pair of normal numbers is left, with that number."""
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002  # the generator of code without its own
    return tuple(state)


def _set_generators(states: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Puts the states back that :func:`_generators` returned, as far as there are such devices here."""
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
        place, has_odd, odd = facts["numpy"]
        keys = states["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, int(place), int(has_odd), odd))  # noqa: NPY002


def _accelerators() -> dict[str, Any]:
    """The kinds of devices that have generators and are in use, with the module of PyTorch for each."""
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu}
    return {
        kind: module for kind, module in kinds.items() if module.is_available() and module.is_initialized()
    }
