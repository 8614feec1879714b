"""List the parts of a network: tensors by name, and plain attributes of modules."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.checkpoint.metadata import Attributes
from secateur.checkpoint.values import decoded, encoded, is_plain
from secateur.errors import CheckpointError, UsageError
from secateur.formats import listed
from secateur.graph.capture.wrappers import COMPILED, is_compiled
from secateur.graph.cutting.attributes import attribute_of, is_integral, owner_of, separate, set_attribute
from secateur.graph.cutting.attributes import integer_attributes as named_integers
from secateur.models import ModelSpec

_OWN = frozenset(vars(nn.Module()))  # attributes of every module, which no file may set
_TENSOR = "tensor"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """List all modules by path; modules wrapped by ``torch.compile`` have the paths of the modules inside.

    >>> list(parts(nn.Sequential(nn.ReLU())))
    ['', '0']
    """
    modules = model.named_modules(remove_duplicate=False)
    return {plain_name(path): module for path, module in modules if not is_compiled(module)}


def plain_name(name: str) -> str:
    """Remove from the name of a module or tensor what ``torch.compile`` adds to it.

    >>> plain_name("block._orig_mod.weight")
    'block.weight'
    """
    return ".".join(part for part in name.split(".") if part != COMPILED)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """List all parameters and buffers by name; a tensor with several names is listed under each."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found |= dict(model.named_buffers(remove_duplicate=False))
    return {plain_name(name): tensor for name, tensor in found.items()}


def transient_buffers(model: nn.Module) -> tuple[str, ...]:
    """List the buffers that ``state_dict`` leaves out, since code can create them again."""
    return tuple(
        _joined(path, name)
        for path, module in parts(model).items()
        for name in sorted(module._non_persistent_buffers_set)
        if module._buffers.get(name) is not None
    )


def hooked(model: nn.Module) -> tuple[str, ...]:
    """List the paths of the modules with hooks.

    >>> norm = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> _ = norm.register_forward_hook(print)
    >>> hooked(nn.Sequential(nn.ReLU(), norm))
    ('1',)
    """
    modules = parts(model).items()
    return tuple(path for path, module in modules if any(vars(module).get(name) for name in _HOOKS))


def without_marks(attributes: Attributes, hooks: Collection[str], model: nn.Module) -> Attributes:
    """Leave out what notes that hooks were registered, where the network has none.

    Code that registers hooks in its first forward pass keeps a truth value that says so. No file holds hooks,
    so it has to register them once more.

    Args:
        attributes: of the network that was saved.
        hooks: paths of its modules with hooks.
        model: the network that gets the attributes.

    Returns:
        The attributes, without truth values that the network does not have in modules that hold a module
        whose hooks are missing.
    """
    missing = set(hooks) - set(hooked(model))
    modules = parts(model)
    return {
        path: {
            name: value
            for name, value in values.items()
            if not isinstance(value, bool)
            or hasattr(modules[path], name)
            or not any(not path or other == path or other.startswith(f"{path}.") for other in missing)
        }
        for path, values in attributes.items()
    }


def plain_attributes(model: nn.Module) -> Attributes:
    """Collect the attributes of all modules that can be written: plain values and tensors, as JSON.

    They include integers from which code computes shapes, and which change together with the tensors. If a
    network caches results of its last pass (a shape, a grid of that shape), all or none must be restored.
    Integers of an object that a module keeps (``config.heads``) are among them.

    >>> plain_attributes(nn.LayerNorm([2, 3]))[""]["normalized_shape"]
    {'tuple': [2, 3]}
    """
    found = {
        path: {
            name: {_TENSOR: _joined(path, name)} if isinstance(value, Tensor) else encoded(value)
            for name, value in vars(module).items()
            if _is_settable(module, name) and (isinstance(value, Tensor) or is_plain(value))
        }
        for path, module in parts(model).items()
    }
    for path, name, value in named_integers(model):
        if "." in name:
            found.setdefault(plain_name(path), {})[name] = encoded(value)
    return {path: values for path, values in found.items() if values}


def loose_tensors(model: nn.Module) -> dict[str, Tensor]:
    """List tensors by name that are plain attributes of modules, neither parameters nor buffers."""
    return {
        _joined(path, name): value
        for path, module in parts(model).items()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and _is_settable(module, name)
    }


def loose_names(attributes: Attributes) -> frozenset[str]:
    """List the names of the tensors that attributes refer to."""
    values = [value for of_module in attributes.values() for value in of_module.values()]
    return frozenset(str(value[_TENSOR]) for value in values if isinstance(value, dict) and _TENSOR in value)


def changed(model: nn.Module, reference: nn.Module) -> Attributes:
    """Find the attributes that a network of the same modules lacks, or has with another value.

    >>> changed(nn.Linear(3, 2), nn.Linear(4, 2))
    {'': {'in_features': 3}}

    Raises:
        CheckpointError: a module is missing in the other network.
    """
    attributes, others = plain_attributes(model), plain_attributes(reference)
    loose, there = loose_tensors(model), loose_tensors(reference)
    equal = {name for name in loose.keys() & there.keys() if _are_equal(loose[name], there[name])}
    missing = sorted(parts(model).keys() - parts(reference).keys())
    if missing:
        raise CheckpointError(f"it has no module '{missing[0]}'")
    differing = {
        path: {
            name: value
            for name, value in values.items()
            if _joined(path, name) not in equal
            and (_joined(path, name) in loose or others.get(path, {}).get(name, loose) != value)
        }
        for path, values in attributes.items()
    }
    return {path: values for path, values in differing.items() if values}


def _are_equal(one: Tensor, other: Tensor) -> bool:
    if one.is_meta or other.is_meta or one.dtype != other.dtype or one.device != other.device:
        return False
    return torch.equal(one, other)


def blank(spec: ModelSpec) -> nn.Module:
    """Build the network of a specification, without storage where that is possible.

    Some networks compute with the values of tensors while they are built, or have tensors that a
    checkpoint may not contain; those are built with storage. The state of random generators is left as it
    was.

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
    """Check that tensors can belong to a smaller version of a network.

    Args:
        stored: tensors by name, aliases included; only names, shapes and types matter.
        transient: names of tensors that may be missing in either, or fit or not.
        model: the network at its full size.

    Returns:
        The tensors that the network has a place for: all except transient ones that do not fit.

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
            raise CheckpointError(sentence.format(listed(sorted(names), 1)))
    misfits = {name: _misfit(stored[name], built[name]) for name in known & built.keys()}
    for name, reason in sorted(misfits.items()):
        if reason and name not in optional:
            raise CheckpointError(f"{name} {reason} in {kind}")
    return {name: tensor for name, tensor in stored.items() if name in known and not misfits.get(name)}


def check_attributes(attributes: Attributes, stored: Collection[str], model: nn.Module) -> None:
    """Check that every attribute may be set in the network.

    Args:
        attributes: as :func:`plain_attributes` returns them.
        stored: names of the tensors in the file.
        model: the network.

    Raises:
        CheckpointError: a module or a tensor is missing, or a name is a method or the like.
    """
    modules = parts(model)
    for path, values in attributes.items():
        where = f"{type(model).__name__}{'.' if path else ''}{path}"
        if path not in modules:
            raise CheckpointError(f"it sets attributes of {where}, which is missing")
        for name, value in values.items():
            if "." in name:
                own, new = attribute_of(modules[path], name), decoded(value)
                if own is None and isinstance(owner_of(modules[path], name), dict) and is_integral(new):
                    continue  # an entry that was added to a dict
                if not is_integral(own) or not _alike(own, new):
                    raise CheckpointError(
                        f"it sets {where}.{name}, which is not an integer of this form there"
                    )
                continue
            if not _is_settable(modules[path], name):
                raise CheckpointError(f"it sets {where}.{name}, which is not a plain attribute there")
            tensor = _reference(value)
            if tensor is not None and tensor not in stored:
                raise CheckpointError(f"it sets {where}.{name} to a tensor {tensor} that it lacks")


def set_attributes(attributes: Attributes, placed: Mapping[str, Tensor], model: nn.Module) -> None:
    """Set attributes that :func:`check_attributes` has passed.

    A device keeps the value it has in the network, since the file may come from a machine with other devices.
    """
    modules = parts(model)
    for path, values in attributes.items():
        module = modules[path]
        for name, stored in values.items():
            if "." in name:
                separate(model, module, name)
                set_attribute(module, name, decoded(stored))
                continue
            tensor = _reference(stored)
            value = placed[tensor] if tensor is not None else decoded(stored)
            now = vars(module).get(name)
            if isinstance(value, torch.device) and isinstance(now, torch.device):
                continue
            if stored != value and type(value) is list and isinstance(now, tuple):
                value = type(now)(value)  # format 1 does not distinguish them from lists
            vars(module)[name] = (
                value  # bypasses __setattr__, which would register a tensor that is a parameter elsewhere
            )


def _reference(value: Any) -> str | None:
    """Return the name of the tensor that an attribute refers to, if it does."""
    return str(value[_TENSOR]) if isinstance(value, dict) and _TENSOR in value else None


def _is_settable(module: nn.Module, name: str) -> bool:
    """Check that a name is a plain attribute: not a method, tensor, module or attribute of every module."""
    taken = (_OWN, module._parameters, module._buffers, module._modules)
    if name.startswith("__") or not name.isidentifier() or any(name in names for names in taken):
        return False
    of_class = inspect.getattr_static(type(module), name, None)
    return is_plain(of_class) or isinstance(of_class, Tensor)


def _alike(own: Any, value: Any) -> bool:
    """Check that both values are integers, or lists or tuples of equally many integers."""
    return type(own) is type(value) and is_integral(value) and (type(own) is int or len(own) == len(value))


def set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the parameter or buffer of a name by a tensor."""
    path, _, leaf = name.rpartition(".")
    module = _module(model, path)
    slots = module._parameters if leaf in module._parameters else module._buffers
    slots[leaf] = tensor  # type: ignore[assignment]  # a parameter goes among the parameters


def parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    """Return the parameter of a name; ``None`` where the network leaves it out, such as a bias."""
    path, _, leaf = name.rpartition(".")
    return _module(model, path)._parameters[leaf]


def is_parameter(model: nn.Module, name: str) -> bool:
    """Return whether a tensor is a parameter, not a buffer."""
    path, _, leaf = name.rpartition(".")
    return leaf in _module(model, path)._parameters


def _module(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, inside what ``torch.compile`` wraps."""
    module = model
    for part in path.split(".") if path else ():
        child = module._modules[part]
        assert child is not None  # names come from the network itself
        module = child
        while is_compiled(module):
            module = module.get_submodule(COMPILED)
    return module


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _misfit(tensor: Tensor, built: Tensor) -> str:
    """Explain why a tensor cannot be a pruned version of another; an empty text if it can."""
    if tensor.ndim != built.ndim or any(a > b for a, b in zip(tensor.shape, built.shape, strict=True)):
        return f"has shape {tuple(tensor.shape)}, which is not a part of {tuple(built.shape)}"
    # A network may have been converted to another precision as a whole, but counters stay counters.
    if tensor.dtype != built.dtype and not (tensor.is_floating_point() and built.is_floating_point()):
        return f"is of type {tensor.dtype}, but of {built.dtype}"
    return ""


def _is_vacant(model: nn.Module, name: str) -> bool:
    """Return whether a tensor can be added, such as the bias of a convolution that was built without one."""
    path, _, leaf = name.rpartition(".")
    module = parts(model).get(path)
    return module is not None and module._parameters.get(leaf, module) is None


def _has_loose_tensors(model: nn.Module) -> bool:
    """Return whether a module keeps tensors that are neither parameters nor buffers."""
    own = ("_parameters", "_buffers", "_modules")
    values = (v for module in model.modules() for name, v in vars(module).items() if name not in own)
    return any(isinstance(item, Tensor) for value in values for item in _items(value))


def _items(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else (value,)
