"""Replace the modules that a removed residual branch loses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SurgeryError
from secateur.graph.branches import Replacement, Substitute


class PassThrough(nn.Module):
    """Return an argument.

    Args:
        argument: its position or its name.
        entry: where a tuple is returned, the place of the argument in it, and the length of the tuple; the
            other entries are ``None``. A tensor is returned otherwise.
        copied: return a copy, since what reads the result writes to it.

    Example:
        >>> PassThrough(argument="x", entry=(0, 2))(x=torch.ones(1))
        (tensor([1.]), None)
    """

    def __init__(
        self, argument: int | str = 0, entry: tuple[int, int] | None = None, copied: bool = False
    ) -> None:
        super().__init__()
        self.argument = argument
        self.entry = entry
        self.copied = copied

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the argument."""
        given = _given(self.argument, args, kwargs)
        return _within(given.clone() if self.copied else given, self.entry)

    def extra_repr(self) -> str:
        """Name the argument."""
        return f"argument={self.argument!r}"


class Zeros(nn.Module):
    """Return zeros of the shape of an argument.

    Args:
        argument: its position or its name.
        entry: where a tuple is returned, the place of the zeros in it, and the length of the tuple; the other
            entries are ``None``. A tensor is returned otherwise.
        single: dimensions that have size one instead.

    Example:
        >>> Zeros(single=(1,))(torch.ones(2, 3))
        tensor([[0.],
                [0.]])
    """

    def __init__(
        self, argument: int | str = 0, entry: tuple[int, int] | None = None, single: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.argument = argument
        self.entry = entry
        self.single = single

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the zeros."""
        given = _given(self.argument, args, kwargs)
        for dim in self.single:
            given = given.narrow(dim, 0, 1)
        return _within(torch.zeros_like(given), self.entry)

    def extra_repr(self) -> str:
        """Name the argument."""
        return f"argument={self.argument!r}"


def _given(argument: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[argument] if isinstance(argument, int) else kwargs[argument]
    return found


def _within(result: Tensor, entry: tuple[int, int] | None) -> Any:
    if entry is None:
        return result
    place, length = entry
    return tuple(result if number == place else None for number in range(length))


def _substitute(replacement: Replacement, old: nn.Module) -> nn.Module:
    """Make the module that takes the place of another.

    It keeps settings such as ``norm.eps`` and ``attention.batch_first``, which code around it may read.
    Its parameters are ``None``.
    """
    new: nn.Module
    if replacement.substitute is Substitute.PASS:
        new = PassThrough(replacement.argument, replacement.entry, replacement.copied)
    else:
        new = Zeros(replacement.argument, replacement.entry, replacement.single)
    for name, value in vars(old).items():
        if name not in vars(new) and type(value) in (bool, int, float, str, NoneType):
            setattr(new, name, value)
    for name in old._parameters:
        new.register_parameter(name, None)
    return new


def replacements_in(model: nn.Module) -> tuple[Replacement, ...]:
    """Find the modules of a network that have been replaced, in its order.

    Args:
        model: the network.

    Example:
        >>> [item.path for item in replacements_in(nn.Sequential(nn.ReLU(), Zeros()))]
        ['1']
    """
    found = []
    for path, module in model.named_modules():
        if isinstance(module, PassThrough):
            found.append(
                Replacement(path, Substitute.PASS, module.argument, entry=module.entry, copied=module.copied)
            )
        elif isinstance(module, Zeros):
            found.append(
                Replacement(path, Substitute.ZEROS, module.argument, entry=module.entry, single=module.single)
            )
    return tuple(found)


def substitutes(model: nn.Module, replacements: Iterable[Replacement]) -> dict[int, nn.Module]:
    """Make the modules that take the places of others.

    Args:
        model: the network; not changed.
        replacements: which modules they are for, and what they return.

    Returns:
        The new modules, by the ``id`` of the present ones.

    Raises:
        SurgeryError: the network has no such module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    new: dict[int, nn.Module] = {}
    for item in replacements:
        if item.path not in modules:
            raise SurgeryError(f"the network has no module '{item.path}'")
        old = modules[item.path]
        new[id(old)] = _substitute(item, old).train(old.training)
    return new


def replace_modules(model: nn.Module, replacements: Iterable[Replacement]) -> Callable[[], None]:
    """Replace modules of a network in place, under all their names.

    Args:
        model: the network.
        replacements: what to replace.

    Returns:
        A function that puts the former modules back.

    Raises:
        SurgeryError: the network has no such module; nothing is changed.
    """
    new = substitutes(model, replacements)
    with ExitStack() as undo:
        for holder in list(model.modules()) if new else ():
            for name, child in holder._modules.items():
                if id(child) in new:
                    undo.callback(holder._modules.__setitem__, name, child)
                    holder._modules[name] = new[id(child)]
        return undo.pop_all().close
