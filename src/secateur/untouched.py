"""Leave a model and the process as they were found, whatever a forward pass does to them.

A forward pass runs the user's code. It may count its calls, fill a cache, keep its last activation, build
a layer, append to a list, or draw random numbers. Everything in the library that runs a model does so
inside :func:`untouched`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DEPTH = 6
"""How deep objects inside attributes are followed."""

_FOREIGN = ("torch", "numpy", "logging", "threading", "builtins", "concurrent", "multiprocessing", "secateur")
"""Packages whose objects are not looked into: they are no state of a model."""


@contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Restore models and random states when the block ends, on success and on failure.

    Noted and restored are, for every module: its attributes of any kind (also inside lists, dicts, sets and
    plain objects), its submodules, parameters, buffers and hooks, its mode, the values of buffers and of
    plain tensors, and each parameter's ``grad`` and ``requires_grad``; the containers that hooks and
    closures write to; class attributes of the user's own modules; the random states of Python, NumPy and
    PyTorch on every device.

    Values of parameters are restored only where a forward pass is known to change them
    (``nn.Embedding(max_norm=...)``): a copy of all parameters would double the memory.

    Args:
        models: the networks that may be run within the block.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with untouched(net):
        ...     net.seen = net(torch.rand(4, 2))
        >>> hasattr(net, "seen"), net.num_batches_tracked.item()
        (False, 0)
    """
    noted = _Notes()
    restore_random = random_states()
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    for model in models:
        noted.model(model)
    try:
        yield
    finally:
        noted.restore()
        restore_random()
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_default_dtype() != default:
            torch.set_default_dtype(default)


def random_states() -> Callable[[], None]:
    """Note the random states of Python, NumPy and PyTorch on every device.

    Returns:
        A function that puts them back.
    """
    # A state is a few kilobytes; generators that were never used on a device are not woken up.
    python, numpy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(host)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore


class _Notes:
    """What was noted of some models, in the order in which it is restored."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._seen: set[int] = set()
        self._held: list[Any] = []  # keeps noted objects alive, so that no identity is used twice

    def model(self, model: nn.Module) -> None:
        """Note a network with all that it holds."""
        modules = list(model.modules())
        self._seen.update(map(id, modules))
        for module in modules:
            self._module(module)

    def restore(self) -> None:
        """Put everything back."""
        for undo in self._undo:
            undo()

    def _module(self, module: nn.Module) -> None:
        self._contents(vars(module), 0)
        for name, tensor in module._buffers.items():
            self._tensor(tensor, f"buffer {name}")
        changes_weights = getattr(module, "max_norm", None) is not None
        for parameter in module._parameters.values():
            if parameter is not None:
                self._parameter(parameter, copy=changes_weights)
        for cls in type(module).__mro__:
            if not _is_foreign(cls):
                self._class(cls)

    def _parameter(self, parameter: Tensor, *, copy: bool) -> None:
        if id(parameter) in self._seen:
            return
        self._seen.add(id(parameter))
        grad, needs = parameter.grad, parameter.requires_grad
        if copy:
            self._values(parameter)
        if grad is not None:
            self._tensor(grad, "grad")
        self._contents(vars(parameter), 0)

        def undo() -> None:
            if parameter.grad is not grad:
                parameter.grad = grad
            if parameter.requires_grad is not needs:
                parameter.requires_grad_(needs)

        self._undo.append(undo)

    def _tensor(self, tensor: Tensor | None, _what: str = "") -> None:
        """Note the values of a tensor that is no parameter."""
        if tensor is None or isinstance(tensor, nn.Parameter) or id(tensor) in self._seen:
            return
        self._seen.add(id(tensor))
        self._held.append(tensor)
        self._values(tensor)

    def _values(self, tensor: Tensor) -> None:
        version = _version(tensor)
        if version is None or tensor.is_sparse or tensor.is_quantized:
            return
        before = tensor.detach().clone()

        def undo() -> None:
            # Batch normalisation writes to its running statistics without counting.
            if _version(tensor) != version or not _same(tensor, before):
                with torch.no_grad():
                    tensor.detach().copy_(before)

        self._undo.append(undo)

    def _class(self, cls: type) -> None:
        """Note class attributes, and the globals that methods of a class of the user refer to."""
        if id(cls) in self._seen:
            return
        self._seen.add(id(cls))
        before = {name: value for name, value in vars(cls).items() if not name.startswith("__")}

        def undo() -> None:
            for name in [name for name in vars(cls) if not name.startswith("__") and name not in before]:
                delattr(cls, name)
            for name, value in before.items():
                if vars(cls).get(name, undo) is not value:
                    setattr(cls, name, value)

        self._undo.append(undo)
        for value in before.values():
            if isinstance(value, FunctionType):
                self._function(value, 0)
            elif isinstance(value, list | dict | set | deque):
                self._value(value, 0)

    def _value(self, value: Any, depth: int) -> None:
        """Note a value of an attribute, and what it holds."""
        if isinstance(value, Tensor):
            self._tensor(value)
            return
        if isinstance(value, FunctionType):
            self._function(value, depth)
            return
        if isinstance(value, MethodType):
            self._value(value.__self__, depth)
            return
        if isinstance(value, partial):
            for item in (value.func, *value.args, *value.keywords.values()):
                self._value(item, depth + 1)
            return
        if isinstance(value, str | bytes | int | float | complex | bool | type | None) or depth > _DEPTH:
            return
        if isinstance(value, dict | list | set | deque | tuple):
            self._contents(value, depth)
        elif isinstance(value, nn.Module):
            if id(value) not in self._seen:  # a module outside the tree, such as one in a list
                self.model(value)
        elif isinstance(getattr(value, "__dict__", None), dict) and not _is_foreign(type(value)):
            self._contents(vars(value), depth)

    def _contents(self, container: Any, depth: int) -> None:
        """Note what a container holds, and look into it."""
        if id(container) in self._seen:
            return
        self._seen.add(id(container))
        self._held.append(container)
        restore = _restorer(container)
        if restore is not None:
            self._undo.append(restore)
        for value in list(container.values() if isinstance(container, dict) else container):
            self._value(value, depth + 1)

    def _function(self, function: FunctionType, depth: int) -> None:
        """Note what a hook or another function of the user may write to: its closure and its globals."""
        if id(function) in self._seen or depth > _DEPTH:
            return
        self._seen.add(id(function))
        self._held.append(function)
        if str(function.__module__).partition(".")[0] in _FOREIGN:
            return
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            self._cell(cell, content)
            self._value(content, depth + 1)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._value(value, depth + 1)
        self._globals(function, depth)

    def _cell(self, cell: Any, content: Any) -> None:
        def undo() -> None:
            if cell.cell_contents is not content:
                cell.cell_contents = content

        if id(cell) not in self._seen:
            self._seen.add(id(cell))
            self._undo.append(undo)

    def _globals(self, function: FunctionType, depth: int) -> None:
        names = function.__globals__
        for name in _referred(function.__code__):
            value = names.get(name)
            if isinstance(value, dict | list | set | deque):
                self._value(value, depth + 1)
            elif isinstance(value, int | float | str | tuple | None) and name in names:
                self._undo.append(_global_restorer(names, name, value))


def _restorer(container: Any) -> Callable[[], None] | None:
    """A function that gives a container the items back that it holds now."""
    if isinstance(container, dict):
        items = dict(container)

        def undo_dict() -> None:
            if list(container) != list(items) or any(container[key] is not items[key] for key in items):
                container.clear()
                container.update(items)

        return undo_dict
    if isinstance(container, list | deque):
        elements = list(container)

        def undo_list() -> None:
            if len(container) != len(elements) or any(
                one is not other for one, other in zip(container, elements, strict=True)
            ):
                container.clear()
                container.extend(elements)

        return undo_list
    if isinstance(container, set):
        members = set(container)

        def undo_set() -> None:
            if container != members:
                container.clear()
                container.update(members)

        return undo_set
    return None


def _global_restorer(names: dict[str, Any], name: str, value: Any) -> Callable[[], None]:
    def undo() -> None:
        if names.get(name) is not value:
            names[name] = value

    return undo


def _referred(code: CodeType) -> set[str]:
    """Names that a function, and functions within it, look up outside of it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _referred(constant)
    return names


def _is_foreign(cls: type) -> bool:
    return str(cls.__module__).partition(".")[0] in _FOREIGN


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; ``None`` where PyTorch does not count."""
    try:
        return int(tensor._version)
    except (RuntimeError, AttributeError):
        return None


def _same(tensor: Tensor, before: Tensor) -> bool:
    """Whether a tensor holds the numbers that it held before."""
    found = tensor.detach()
    return found.shape == before.shape and bool(
        ((found == before) | ((found != found) & (before != before))).all()
    )
