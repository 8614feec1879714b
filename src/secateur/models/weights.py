"""Load weights from a file into a network, as far as they fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import CheckpointError
from secateur.formats import first_line, listed

# Keys under which training scripts save weights, and prefixes that wrappers add to the names.
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


@dataclass(frozen=True)
class LoadedWeights:
    """Which tensors of a network were filled.

    Attributes:
        loaded: names of the tensors that were filled.
        missing: names that the source lacks; they are not changed.
        unfitting: names whose shape in the source is different; they are not changed.
        unexpected: names in the source that the network lacks.

    >>> print(LoadedWeights(("conv.weight",), ("fc.weight", "fc.bias"), (), ()))
    1 tensor loaded; fc.weight, fc.bias are new
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unfitting: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def new(self) -> tuple[str, ...]:
        """List the names of the tensors that were not filled."""
        return self.missing + self.unfitting

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensor{'s' * (len(self.loaded) != 1)} loaded"]
        if self.new:
            parts.append(f"{listed(self.new)} {'are' if len(self.new) > 1 else 'is'} new")
        if self.unexpected:
            parts.append(f"{listed(self.unexpected)} of the file not used")
        return "; ".join(parts)


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> LoadedWeights:
    """Fill a network with weights, as far as names and shapes fit.

    The final classifier usually does not fit if the classes differ: it keeps its initial values, and
    the report says so.

    Args:
        model: the network; changed in place.
        source: a file (``.pt``, ``.pth``, ``.th``: anything that ``torch.load`` reads without running code;
            or ``.safetensors``), or tensors by name. Weights under keys such as ``state_dict`` are found,
            and prefixes such as ``module.`` removed.

    Returns:
        Which tensors were filled, and which not.

    Raises:
        CheckpointError: if the file cannot be read or nothing in it fits.

    >>> source = {"module.weight": torch.ones(2, 3), "module.bias": torch.zeros(5)}
    >>> print(load_weights(torch.nn.Linear(3, 2), source))
    1 tensor loaded; bias is new
    """
    where = "the weights" if isinstance(source, Mapping) else str(source)
    data = source if isinstance(source, Mapping) else _read(Path(source))
    state = model.state_dict(keep_vars=True)
    tensors = _without_prefix(_tensors(data, where), state)

    unfitting = tuple(name for name in state if name in tensors and tensors[name].shape != state[name].shape)
    fitting = {name: tensors[name] for name in state if name in tensors and name not in unfitting}
    if not any(tensor.ndim for tensor in fitting.values()):
        raise CheckpointError(
            f"nothing in {where} fits {type(model).__name__}: it has {listed(tuple(tensors))}, "
            f"the network {listed(tuple(state))}"
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            state[name].copy_(tensor)
    filled = {id(state[name]) for name in fitting}
    return LoadedWeights(
        loaded=tuple(fitting),
        missing=tuple(
            name
            for name, tensor in state.items()
            # A tied tensor is filled under its other name; counters of steps are not weights.
            if name not in tensors and id(tensor) not in filled and not name.endswith("num_batches_tracked")
        ),
        unfitting=unfitting,
        unexpected=tuple(name for name in tensors if name not in state),
    )


def _read(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"no weights file {path}: give an existing file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, or is not a weights file: save model.state_dict() and give that"
        ) from error
    except Exception as error:  # foreign bytes fail in many ways
        reason = first_line(error)
        raise CheckpointError(f"{path} cannot be read as weights ({reason}): is it complete?") from error


def _tensors(data: object, where: str) -> dict[str, Tensor]:
    """Find the tensors by name, at any depth of what a training script saved."""
    while isinstance(data, Mapping):
        tensors = {str(name): value for name, value in data.items() if isinstance(value, Tensor)}
        inner = next((data[key] for key in _NESTED if isinstance(data.get(key), Mapping)), None)
        if inner is None:
            if tensors:
                return tensors
            break
        data = inner
    raise CheckpointError(f"no tensors by name in {where}: save model.state_dict() and give that")


def _without_prefix(tensors: dict[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that a wrapper added to every name."""
    for _ in range(len(_PREFIXES)):
        for prefix in _PREFIXES:
            ours = any(name.startswith(prefix) for name in state)
            if not ours and all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
