"""Restore a model and the process after a forward pass, whatever it changes.

A forward pass runs the user's code. It may count its calls, fill a cache, keep its last activation, build
a layer, append to a list, or draw random numbers. All code in the library runs models inside
:func:`untouched`.
"""

from __future__ import annotations

import gc
import operator
import random
import sys
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import _lru_cache_wrapper, partial
from types import (
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, TypeVar
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from secateur._compat import FakeTensor
from secateur.code_state import Code, code_state, enclosed, is_code, is_foreign, is_library, is_state

T = TypeVar("T")

_DEPTH = 6
"""Largest depth to which objects inside attributes are followed."""

_PLAIN = frozenset((int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size))
_METHODS = (_lru_cache_wrapper, FunctionType, MethodType, staticmethod, classmethod)
_MAY_HOLD = (*_METHODS, dict, list, tuple, set)
"""What may be a cached function, or hold one."""

_MOST_KEPT = 10_000
"""Objects in a cache that are looked at; one with more counts as one that keeps tensors."""

_HOLDERS = (dict, OrderedDict, list, tuple, set, frozenset)

_DESCRIPTORS = (property, staticmethod, classmethod, MemberDescriptorType, GetSetDescriptorType)

_EMPTY = frozenset((dict, OrderedDict, list, set))
_CONTAINERS = (OrderedDict, dict, list, set, deque, tuple)


@contextmanager
def untouched(*models: nn.Module, weights: bool = True) -> Iterator[StateRecord]:
    """Restore models and random states at the end of the block, also after an error.

    For every module, these are recorded and restored: its attributes of any kind (also inside lists, dicts,
    sets and plain objects, with or without ``__slots__``), its submodules, parameters, buffers and hooks, its
    mode, the values of parameters, buffers and plain tensors, and each parameter's ``grad``,
    ``requires_grad`` and gradient hooks; the containers that hooks and closures write to; class attributes of
    the user's own modules; the states of its random generators; caches of its methods and of the functions
    that their code can name (``functools.lru_cache``), which are cleared if they got entries; the random
    states of Python, NumPy and PyTorch on every device; the contents of NumPy arrays and of arrays of bytes
    and numbers; the implementations of functions with ``functools.singledispatch``; the number of threads,
    the default dtype, and whether gradients are computed, anomalies are looked for, and algorithms must be
    deterministic.

    Args:
        models: the networks that may be run within the block.
        weights: also record the values of parameters, which takes as much memory as the parameters. A forward
            pass, or a change of the mode, writes to them if weights are merged, initialised from the first
            batch or limited in norm.

    Yields:
        The record, which lists afterwards the parameters that were written to, and can seed the random
        generators of the models.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with untouched(net):
        ...     net.seen = net(torch.rand(4, 2))
        >>> hasattr(net, "seen"), net.num_batches_tracked.item()
        (False, 0)
    """
    record = StateRecord(*models, weights=weights)
    with record.restored():
        yield record


def _determinism() -> tuple[bool, bool, bool, bool]:
    """Return what PyTorch does for results that repeat.

    Returns:
        Whether deterministic algorithms are required; whether others only warn; whether new memory is filled
        then; and whether cuDNN is deterministic.
    """
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic,
    )


def _set_determinism(determinism: tuple[bool, bool, bool, bool]) -> None:
    enabled, warns, fills, torch.backends.cudnn.deterministic = determinism
    torch.use_deterministic_algorithms(enabled, warn_only=warns)
    torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def _anomalies() -> tuple[bool, bool]:
    """Return whether backward passes look for anomalies, and whether values that are no numbers count."""
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (_determinism, _set_determinism),
    (_anomalies, lambda modes: torch.autograd.set_detect_anomaly(*modes)),
    (np.geterr, lambda kinds: np.seterr(**kinds)),
)
"""Settings of the process that code may change: how each is read and written."""


def _caches(models: Sequence[nn.Module]) -> list[_lru_cache_wrapper[Any]]:
    """Find the cached functions (``lru_cache``) that the code of some networks can reach by name.

    These are methods, attributes, functions of the files of their classes, and functions of modules that
    these files import, also within decorators and containers. A cache may keep tensors of another pass, such
    as one without values.
    """
    instances = [module for model in models for module in model.modules()]
    kinds = {parent for kind in {type(module) for module in instances} for parent in kind.__mro__}
    classes = {kind for kind in kinds if not is_library(kind.__module__)}
    owners: list[Any] = [*classes, *(module for module in instances if type(module) in classes)]
    for name in {kind.__module__ for kind in classes}:
        file = sys.modules.get(name)
        owners += [file, *(item for item in _values(file) if isinstance(item, ModuleType))]
    found = {
        id(item): item
        for owner in owners
        if not (isinstance(owner, ModuleType) and is_library(owner.__name__))
        for value in _values(owner)
        if isinstance(value, _MAY_HOLD)
        for item in _held(value)
        if isinstance(item, _lru_cache_wrapper)
    }
    return list(found.values())


def _keeps_tensors(cache: _lru_cache_wrapper[Any]) -> bool:
    """Return whether a cache keeps a tensor, or an object that may have one, for any arguments."""
    seen, left = {id(cache)}, gc.get_referents(cache)
    while left and len(seen) < _MOST_KEPT:
        item = left.pop()
        if isinstance(item, Tensor):
            return True
        kind = type(item)
        follows = kind in _HOLDERS or not is_library(kind.__module__)
        if id(item) not in seen and follows and not isinstance(item, nn.Module):
            seen.add(id(item))
            left += gc.get_referents(item)
    return bool(left)


def _values(owner: Any) -> list[Any]:
    """List the attributes of an object; none for one without a dictionary of them."""
    return list(getattr(owner, "__dict__", {}).values())


def _held(value: Any) -> Iterator[Any]:
    """List a value, and what it holds: a method, a closure or a container."""
    function = getattr(value, "__func__", value)
    yield function
    if isinstance(function, FunctionType):
        yield from enclosed(function)
    if isinstance(value, dict):
        yield from list(value.values())
    elif isinstance(value, list | tuple | set):
        yield from list(value)


def _random_rewinder() -> Callable[[], None]:
    """Record the random states of Python, NumPy and PyTorch on every device.

    Returns:
        A function that restores them.
    """
    # A state is a few kilobytes; unused generators of a device are not initialised.
    python, host = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 - the generator that users' code draws from
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(host)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore


RandomGenerator = torch.Generator | random.Random | np.random.RandomState | np.random.BitGenerator
"""A generator of random numbers that has a state."""


def _random_generator(value: Any) -> RandomGenerator | None:
    """Find the generator whose state changes when numbers are drawn from a value."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator
    if isinstance(value, random.SystemRandom):  # draws from the system, and has no state
        return None
    return value if isinstance(value, RandomGenerator) else None


def _rewinder(generator: RandomGenerator) -> Callable[[], None]:
    """Record the state of a generator.

    Returns:
        A function that restores it.
    """
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())  # type: ignore[return-value]
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    return partial(setattr, generator, "state", generator.state)


def _seed(generator: RandomGenerator) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(0)
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = type(generator)(0).state
    else:
        generator.seed(0)


class StateRecord:
    """The recorded state of some models, in the order in which it is restored; see :func:`untouched`.

    To find all that code may write to takes longer than to restore it, so one record serves many blocks that
    start in the recorded state.

    Args:
        models: the networks.
        weights: also record the values of parameters.

    Attributes:
        written: parameters that had other values when they were restored.
    """

    def __init__(self, *models: nn.Module, weights: bool = True) -> None:
        self.written: list[Tensor] = []
        self._cached: list[_lru_cache_wrapper[Any]] = []
        self._generators: list[RandomGenerator] = []
        self._weights = weights
        self._undo: list[Callable[[], None]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []
        self._hooked = False  # whether hooks may call methods that the forward pass does not name
        self._seen: set[int] = set()
        self._places: set[tuple[str, int]] = set()  # classes, functions and variables that are recorded
        self._held: list[Any] = []  # keeps recorded objects alive, so that no identity is used twice
        for model in models:
            self._model(model)
        self._caches = list({id(cache): cache for cache in (*_caches(models), *self._cached)}.values())

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the models and the process at the end of a block, which starts in the recorded state."""
        restore_random = _random_rewinder()
        switches = [(read(), read, write) for read, write in _SWITCHES]
        # A table of an earlier pass may be less precise than the one that a check computes.
        for cache in self._caches:
            if _keeps_tensors(cache):
                cache.cache_clear()
        caches = [(cache, cache.cache_info()) for cache in self._caches]
        try:
            yield
        finally:
            self._restore()
            for cache, before in caches:
                # Others, such as those that write a message once, are no state of a pass.
                if cache.cache_info().misses != before.misses and _keeps_tensors(cache):
                    cache.cache_clear()
            restore_random()
            for setting, read, write in switches:
                if read() != setting:
                    write(setting)

    def _model(self, model: nn.Module) -> None:
        """Record a network and all its content."""
        modules = list(model.modules())
        self._seen.update(map(id, modules))
        self._hooked = self._hooked or any(map(_has_hooks, modules))
        for module in modules:
            self._module(module)

    def seed_generators(self) -> None:
        """Seed the random generators of the models, so that two runs draw the same numbers."""
        for generator in self._generators:
            _seed(generator)

    def _restore(self) -> None:
        """Restore everything."""
        for container in self._empty:
            if container:
                container.clear()
        for container, before in self._containers:
            _restore(container, before)
        for undo in self._undo:
            undo()

    def _module(self, module: nn.Module) -> None:
        self._contents(vars(module), 0)
        for tensor in module._buffers.values():
            self._tensor(tensor)
        for parameter in module._parameters.values():
            if parameter is not None:
                self._parameter(parameter)
        self._code(type(module), 0)

    def _parameter(self, parameter: Tensor) -> None:
        if id(parameter) in self._seen:
            return
        self._seen.add(id(parameter))
        grad, needs = parameter.grad, parameter.requires_grad
        data = parameter.data
        if grad is not None:
            self._tensor(grad)
        self._contents(vars(parameter), 0)
        for hooks in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks):
            if hooks:
                self._contents(hooks, 0)

        def undo() -> None:
            if _place(parameter) != _place(data):  # such as module.to(dtype)
                parameter.data = data
            if parameter.grad is not grad:
                parameter.grad = grad
            if parameter.requires_grad is not needs:
                parameter.requires_grad_(needs)

        self._undo.append(undo)
        if self._weights:
            self._values(parameter)  # written back after the parameter has its own memory again

    def _tensor(self, tensor: Tensor | None) -> None:
        """Record the values of a tensor that is not a parameter."""
        if tensor is None or isinstance(tensor, nn.Parameter) or id(tensor) in self._seen:
            return
        self._seen.add(id(tensor))
        self._held.append(tensor)
        self._values(tensor)

    def _values(self, tensor: Tensor) -> None:
        version = _version(tensor)
        if version is None or tensor.layout is not torch.strided or tensor.is_quantized:
            return
        if tensor.is_meta or isinstance(tensor, FakeTensor):  # has no values
            return
        before = tensor.detach().clone()
        written = self.written  # an undo that refers to the record would keep the copies until a collection

        def undo() -> None:
            # Not all writes are counted: those of batch normalisation and those through ``.data`` are not.
            if not _same(tensor, before):
                written.append(tensor)
                with torch.no_grad():
                    tensor.detach().copy_(before)

        self._undo.append(undo)

    def _code(self, root: Code, depth: int) -> None:
        """Record what code may write to: class attributes, closures and globals."""
        if id(root) in self._seen or depth > _DEPTH:
            return
        self._seen.add(id(root))
        self._held.append(root)
        state = code_state(root, every=self._hooked)
        for cls in _alive(state.classes):
            self._class(cls, depth)
        for function in _alive(state.functions):
            self._function(function, depth)
        for variables in state.variables:
            for names, name in variables.found():
                self._variable(names, name, depth)
        for function in _alive(state.files):
            self._file(function.__globals__, depth)
        self._cached += _alive(state.caches)

    def _class(self, cls: type, depth: int) -> None:
        """Record the attributes of a class."""
        if ("class", id(cls)) in self._places:
            return
        self._places.add(("class", id(cls)))
        before = {name: value for name, value in vars(cls).items() if not name.startswith("__")}

        def undo() -> None:
            for name in [name for name in vars(cls) if not name.startswith("__") and name not in before]:
                delattr(cls, name)
            for name, value in before.items():
                if vars(cls).get(name, _UNSET) is not value:
                    setattr(cls, name, value)

        self._undo.append(undo)
        for value in before.values():
            if not (is_code(value) or isinstance(value, _DESCRIPTORS)):
                self._value(value, depth + 1)

    def _function(self, function: FunctionType, depth: int) -> None:
        """Record what a function's closure and default arguments hold."""
        if ("function", id(function)) in self._places:
            return
        self._places.add(("function", id(function)))
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            self._cell(cell, content)
            if not is_code(content):  # code is followed already
                self._value(content, depth + 1)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if type(value) not in _PLAIN and not is_code(value):
                self._value(value, depth + 1)
        self._implementations(function, depth)
        kept = vars(function)
        if "__wrapped__" not in kept:  # a decorator's; the function in it is followed already
            self._contents(kept, depth + 1)

    def _implementations(self, function: FunctionType, depth: int) -> None:
        """Record which implementations a function of ``functools.singledispatch`` has."""
        dispatch = vars(function).get("dispatch")
        if not isinstance(vars(function).get("registry"), MappingProxyType) or dispatch is None:
            return
        for held in enclosed(dispatch):
            if type(held) is dict:
                self._contents(held, depth + 1)
                self._undo.append(function._clear_cache)  # type: ignore[attr-defined]

    def _variable(self, names: dict[str, Any], name: str, depth: int) -> None:
        """Record a global variable, and what it holds."""
        if (name, id(names)) in self._places:
            return
        self._places.add((name, id(names)))
        value = names.get(name, _UNSET)
        self._undo.append(_global_restorer(names, name, value))
        if value is not _UNSET and not is_code(value):
            self._value(value, depth + 1)

    def _file(self, names: dict[str, Any], depth: int) -> None:
        """Record all global variables of a file, and which there are."""
        if ("", id(names)) in self._places:
            return
        self._places.add(("", id(names)))
        before = frozenset(names)

        def undo() -> None:
            for name in names.keys() - before:
                del names[name]

        self._undo.append(undo)
        for name, value in list(names.items()):
            if is_state(value) and not name.startswith("__"):
                self._variable(names, name, depth)

    def _context(self, variable: ContextVar[Any], depth: int) -> None:
        """Record a context variable, and what it holds; one without a value or a default cannot be unset."""
        if id(variable) in self._seen:
            return
        self._seen.add(id(variable))
        self._held.append(variable)
        before = variable.get(_UNSET)
        try:
            value = variable.get()
        except LookupError:
            return

        def undo() -> None:
            if variable.get(_UNSET) is not before:
                variable.set(value)

        self._undo.append(undo)
        self._value(value, depth + 1)

    def _value(self, value: Any, depth: int) -> None:
        """Record a value of an attribute, and its content."""
        if isinstance(value, Tensor):
            self._tensor(value)
            return
        if is_code(value):
            if not is_library(value.__module__) and not isinstance(value, type):
                self._code(value, depth)
            return
        generator = _random_generator(value)
        if generator is not None:
            self._generator(generator)
        if isinstance(value, MethodType):
            self._value(value.__self__, depth)
            self._value(value.__func__, depth)
            return
        if isinstance(value, partial):
            for item in (value.func, *value.args, *value.keywords.values()):
                self._value(item, depth + 1)
            return
        if isinstance(value, str | bytes | int | float | complex | bool | None) or depth > _DEPTH:
            return
        self._inside(value, depth)

    def _inside(self, value: Any, depth: int) -> None:
        """Record the content of a container, a module or an object."""
        if issubclass(type(value), dict | list | set | deque | tuple):  # others only claim to be one
            self._contents(value, depth)
        elif isinstance(value, ContextVar):
            self._context(value, depth)
        elif isinstance(value, nn.Module):
            if id(value) not in self._seen:  # a module outside the tree, such as one in a list
                self._model(value)
        elif isinstance(value, np.ndarray | array | bytearray):
            self._array(value, depth)
        elif not is_foreign(type(value)):
            if isinstance(getattr(value, "__dict__", None), dict):
                self._contents(vars(value), depth)
            self._slots(value, depth)

    def _array(self, value: np.ndarray[Any, Any] | array[Any] | bytearray, depth: int) -> None:
        """Record the numbers of an array outside of PyTorch, and the attributes of one of a subclass."""
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._held.append(value)
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                plain = value.view(np.ndarray)
                self._undo.append(partial(_restore_numbers, plain, plain.copy()))
            if isinstance(getattr(value, "__dict__", None), dict):  # such as the mask of a masked array
                self._contents(vars(value), depth)
        else:
            self._undo.append(partial(operator.setitem, value, slice(None), value[:]))

    def _generator(self, generator: RandomGenerator) -> None:
        if id(generator) not in self._seen:
            self._seen.add(id(generator))
            self._held.append(generator)  # NumPy may create a new one at each access
            self._generators.append(generator)
            self._undo.append(_rewinder(generator))

    def _slots(self, value: Any, depth: int) -> None:
        """Record the attributes that an object keeps in ``__slots__``."""
        slots = [
            slot
            for cls in type(value).__mro__
            if "__slots__" in vars(cls)
            for slot in vars(cls).values()
            if isinstance(slot, MemberDescriptorType)
        ]
        if not slots or id(value) in self._seen:
            return
        self._seen.add(id(value))
        for slot in slots:
            before = _slot(value, slot)
            # By the descriptor, since a frozen class refuses ``setattr``.
            self._undo.append(partial(_restore_slot, value, slot, before))
            self._value(before, depth + 1)

    def _contents(self, container: Any, depth: int) -> None:
        """Record the items of a container, and their content."""
        if id(container) in self._seen:
            return
        self._seen.add(id(container))
        held = _items(container)
        if isinstance(container, tuple):
            self._held.append(container)
        else:
            self._containers.append((container, held))
        for value in held.values() if isinstance(held, dict) else held:
            kind = type(value)
            if kind in _EMPTY and not value:  # such as the hooks of most modules
                self._empty.append(value)
            elif kind not in _PLAIN:
                self._value(value, depth + 1)

    def _cell(self, cell: Any, content: Any) -> None:
        def undo() -> None:
            if cell.cell_contents is not content:
                cell.cell_contents = content

        if id(cell) not in self._seen:
            self._seen.add(id(cell))
            self._undo.append(undo)


def _kind(container: Any) -> Any:
    """Find the class of the standard library that a container derives from.

    Its methods are called instead of those of the container, which may do something else.
    """
    kind = type(container)
    return kind if kind in _CONTAINERS else next(base for base in _CONTAINERS if isinstance(container, base))


def _items(container: Any) -> dict[Any, Any] | list[Any]:
    """List what a container holds, in one of the standard library."""
    kind = _kind(container)
    return dict(kind.items(container)) if issubclass(kind, dict) else list(kind.__iter__(container))


def _restore(container: Any, before: dict[Any, Any] | list[Any]) -> None:
    """Give a container the items back that it held."""
    kind, found = _kind(container), _items(container)
    if isinstance(before, dict):
        if list(found) != list(before) or any(found[key] is not before[key] for key in before):
            kind.clear(container)
            for key, value in before.items():
                kind.__setitem__(container, key, value)
    elif len(found) != len(before) or any(map(operator.is_not, found, before)):
        kind.clear(container)
        add = kind.update if kind is set else kind.extend
        add(container, before)


def _restore_numbers(values: np.ndarray[Any, Any], before: np.ndarray[Any, Any]) -> None:
    """Write numbers back into an array, if it holds others (also if it is a file on a disk)."""
    if values.tobytes() != before.tobytes():
        np.copyto(values, before)


def _has_hooks(module: nn.Module) -> bool:
    """Return whether something else than its forward pass runs with a module."""
    return any(value for name, value in vars(module).items() if name.endswith("_hooks") and name[0] == "_")


def _alive(references: Iterable[ref[T]]) -> list[T]:
    """List the objects that still exist."""
    return [item for reference in references if (item := reference()) is not None]


_UNSET = object()
"""Stands for the value of a slot that has none."""


def _slot(value: Any, slot: MemberDescriptorType) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return _UNSET


def _restore_slot(value: Any, slot: MemberDescriptorType, before: Any) -> None:
    if _slot(value, slot) is before:
        return
    if before is _UNSET:
        slot.__delete__(value)
    else:
        slot.__set__(value, before)


def _global_restorer(names: dict[str, Any], name: str, value: Any) -> Callable[[], None]:
    def undo() -> None:
        if value is _UNSET:
            names.pop(name, None)
        elif names.get(name, _UNSET) is not value:
            names[name] = value

    return undo


def _version(tensor: Tensor) -> int | None:
    """Return the number of writes to a tensor; ``None`` if PyTorch does not count them."""
    try:
        return int(tensor._version)
    except (RuntimeError, AttributeError):
        return None


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Return the address of a tensor's numbers, and their layout."""
    try:
        return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    except RuntimeError:  # sparse tensors, and those without memory
        return 0, tensor.dtype, tensor.shape, ()


def _same(tensor: Tensor, before: Tensor) -> bool:
    """Return whether a tensor has the same numbers as before."""
    found = tensor.detach()
    if found.shape != before.shape or found.dtype != before.dtype:
        return False
    return torch.equal(found, before) or bool(
        ((found == before) | ((found != found) & (before != before))).all()
    )
