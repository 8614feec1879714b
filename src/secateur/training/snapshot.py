"""Everything that training changes, taken down and put back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.errors import CheckpointError
from secateur.training.journal import Entry

_MODEL, _OPTIMIZER, _CHANCE = "model.", "optimizer.", "chance."


def snapshot(model: nn.Module, optimizer: Optimizer) -> Entry:
    """Weights, the state of the optimizer, and that of the random generators, copied.

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
    return Entry({"optimizer": plain}, tensors)


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
    torch.set_rng_state(chance["cpu"])
    if "cuda" in chance and torch.cuda.is_available():
        torch.cuda.set_rng_state(chance["cuda"])


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it.

    >>> under("a.", {"a.b": torch.zeros(1), "c": torch.ones(1)})
    {'b': tensor([0.])}
    """
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _generators() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
