"""What makes up a network: tensors by name, and integer attributes of modules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from secateur.checkpoint.metadata import Attributes
from secateur.errors import CheckpointError, UsageError
from secateur.graph.attributes import attribute_of, set_attribute
from secateur.graph.attributes import integer_attributes as named_integers
from secateur.models import ModelSpec


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, one that has several names under each of them."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def transient_buffers(model: nn.Module) -> tuple[str, ...]:
    """Names of the buffers that ``state_dict`` leaves out, since code can make them anew."""
    return tuple(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in sorted(module._non_persistent_buffers_set)
        if module._buffers.get(name) is not None
    )


def integer_attributes(model: nn.Module) -> Attributes:
    """All integer attributes of all modules, and all tuples or lists of integers.

    Integers of an object that a module keeps (``config.heads``) are among them. These are what code
    computes shapes with, and so what has to change along with the tensors.

    >>> integer_attributes(nn.LayerNorm([2, 3]))
    {'': {'normalized_shape': [2, 3]}}
    """
    found = {
        path: {
            name: value if isinstance(value, int) else list(value)
            for name, value in vars(module).items()
            if is_integral(value)
        }
        for path, module in model.named_modules()
    }
    for path, name, value in named_integers(model):
        if "." in name:
            found[path][name] = value if isinstance(value, int) else list(value)
    return {path: values for path, values in found.items() if values}


def is_integral(value: object) -> bool:
    """Whether a value is an integer, or a tuple or list of some; truth values are no integers."""
    if type(value) in (tuple, list, torch.Size):
        return bool(value) and all(type(item) is int for item in value)  # type: ignore[attr-defined]
    return type(value) is int


def changed(attributes: Attributes, reference: Attributes) -> Attributes:
    """The attributes that the reference has too, but with another value.

    >>> changed({"a": {"x": 1, "y": 2, "z": 3}}, {"a": {"x": 1, "y": 5}, "b": {"x": 1}})
    {'a': {'y': 2}}
    """
    differing = {
        path: {
            name: value
            for name, value in values.items()
            if name in reference.get(path, {}) and reference[path][name] != value
        }
        for path, values in attributes.items()
    }
    return {path: values for path, values in differing.items() if values}


def blank(spec: ModelSpec) -> nn.Module:
    """The network of a specification, without storage where that is possible.

    Some networks compute with the values of tensors while they are built, or have tensors that no checkpoint
    is sure to hold; those are built in full. The state of random generators is left as it was.

    Raises:
        UsageError: if the network cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = spec.build()
        except UsageError:
            return spec.build()
        return spec.build() if transient_buffers(model) or _has_loose_tensors(model) else model


def fitting(stored: Mapping[str, Tensor], transient: Collection[str], model: nn.Module) -> dict[str, Tensor]:
    """Hold tensors against a network of which they may be a smaller version.

    Args:
        stored: tensors by name, aliases included; only names, shapes and types matter.
        transient: names of tensors that may be missing in either, or fit or not.
        model: the network at its full size.

    Returns:
        The tensors that have a place in the network: all but transient ones that do not fit.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape or type does not fit.
    """
    built = tensors(model)
    optional = {*transient, *transient_buffers(model)}
    known = {name for name in stored if name in built or _is_vacant(model, name)}
    kind = type(model).__name__
    for names, sentence in (
        (built.keys() - stored.keys() - optional, f"it lacks {{}}, which {kind} has"),
        (stored.keys() - known - optional, f"it has {{}}, which {kind} lacks"),
    ):
        if names:
            first, more = min(names), f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(sentence.format(first + more))
    misfits = {name: _misfit(stored[name], built[name]) for name in known & built.keys()}
    for name, reason in sorted(misfits.items()):
        if reason and name not in optional:
            raise CheckpointError(f"{name} {reason} in {kind}")
    return {name: tensor for name, tensor in stored.items() if name in known and not misfits.get(name)}


def check_attributes(attributes: Attributes, model: nn.Module) -> None:
    """Make sure that every attribute exists in the network and is of the same form.

    Raises:
        CheckpointError: a module or attribute is missing, or is no integer, or of another length.
    """
    modules = dict(model.named_modules())
    for path, values in attributes.items():
        where = f"{type(model).__name__}{'.' if path else ''}{path}"
        if path not in modules:
            raise CheckpointError(f"it sets attributes of {where}, which is missing")
        for name, value in values.items():
            own = attribute_of(modules[path], name)
            if not is_integral(own):
                raise CheckpointError(f"it sets {where}.{name}, which is no integer attribute there")
            lengths = [len(v) if isinstance(v, list | tuple) else 0 for v in (value, own)]
            if lengths[0] != lengths[1]:
                raise CheckpointError(f"it sets {where}.{name} to {value}, but it is {own}")


def set_attributes(attributes: Attributes, model: nn.Module) -> None:
    """Set attributes that :func:`check_attributes` has passed."""
    modules = dict(model.named_modules())
    for path, values in attributes.items():
        module = modules[path]
        for name, value in values.items():
            form = type(attribute_of(module, name))
            set_attribute(module, name, form(value))


def set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of the parameter or buffer of that name."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    slots = module._parameters if leaf in module._parameters else module._buffers
    slots[leaf] = tensor  # type: ignore[assignment]  # a parameter goes among the parameters


def is_parameter(model: nn.Module, name: str) -> bool:
    """Whether a tensor is a parameter, and not a buffer."""
    path, _, leaf = name.rpartition(".")
    return leaf in model.get_submodule(path)._parameters


def _misfit(tensor: Tensor, built: Tensor) -> str:
    """Why a tensor cannot be what is left of another after pruning; nothing if it can."""
    if tensor.ndim != built.ndim or any(a > b for a, b in zip(tensor.shape, built.shape, strict=True)):
        return f"has shape {tuple(tensor.shape)}, which is no part of {tuple(built.shape)}"
    # A network may have been converted to another precision as a whole, but counters stay counters.
    if tensor.dtype != built.dtype and not (tensor.is_floating_point() and built.is_floating_point()):
        return f"is of type {tensor.dtype}, but of {built.dtype}"
    return ""


def _is_vacant(model: nn.Module, name: str) -> bool:
    """Whether there is a place for such a tensor, as for the bias of a convolution built without one."""
    path, _, leaf = name.rpartition(".")
    module = dict(model.named_modules()).get(path)
    return module is not None and module._parameters.get(leaf, module) is None


def _has_loose_tensors(model: nn.Module) -> bool:
    """Whether a module keeps tensors that are neither parameters nor buffers."""
    own = ("_parameters", "_buffers", "_modules")
    values = (v for module in model.modules() for name, v in vars(module).items() if name not in own)
    return any(isinstance(item, Tensor) for value in values for item in _items(value))


def _items(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else (value,)
