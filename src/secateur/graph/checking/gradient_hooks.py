"""Call the gradient hooks of parameters on trial: a mask of the old size stops the first backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from secateur.graph.checking.execution import described
from secateur.graph.cutting.rebinding import rebind
from secateur.graph.cutting.tensors import HOOKS, OF_GRADIENT

HookErrors = Mapping[str, str]
"""What goes wrong in the gradient hooks of parameters, by the name of the parameter."""


def hook_errors(model: nn.Module, changed: Callable[[], AbstractContextManager[None]]) -> HookErrors:
    """Call the gradient hooks of all parameters with gradients of the shape that the parameters have.

    The hooks are copied, so that they refer to the parameters within the block. What they write to must be
    restored at its end. A hook that takes a step of an optimizer is called up to there.

    Args:
        model: the network.
        changed: gives the network other parameters within a block, and leaves it as it was.

    Returns:
        The first error of each parameter whose hooks fail; nothing for hooks that cannot be copied.

    Example:
        >>> from secateur.graph.cutting.substitute import substituted
        >>> net, mask = nn.Linear(2, 3), torch.ones(3, 2)
        >>> handle = net.weight.register_hook(lambda gradient: gradient * mask)
        >>> hook_errors(net, lambda: substituted(net, {"weight": torch.ones(1, 2)}))
        {'weight': 'it returns shape (3, 2) for a gradient of shape (1, 2)'}
    """
    before = dict(model.named_parameters())
    hooked = [name for name, parameter in before.items() if any(getattr(parameter, kind) for kind in HOOKS)]
    found: dict[str, str] = {}
    if not hooked:
        return found
    with changed(), torch.enable_grad():
        after = dict(model.named_parameters())
        for name in hooked:
            if name not in after or after[name] is before[name]:
                continue
            hooks = _copied_hooks(model, before, after, name)
            error = None if hooks is None else _first_error(after[name], hooks)
            if error is not None:
                found[name] = error
    return found


def new_hook_error(before: HookErrors, after: HookErrors) -> str | None:
    """Describe a gradient hook that fails after a cut and not before it; ``None`` if there is none."""
    for name, error in after.items():
        if name not in before:
            return f"a gradient hook of '{name}' fails ({error})"
    return None


def _copied_hooks(
    model: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor], name: str
) -> list[tuple[str, Any]] | None:
    """Copy the hooks of a parameter so that they refer to the new parameters.

    Returns:
        For each hook its kind and the copy; ``None`` if they cannot be copied.
    """
    memo: dict[int, Any] = {id(old): after[key] for key, old in before.items() if key in after}
    own = {id(module): module for module in model.modules()}
    copying = memo | own
    copies = {kind: getattr(before[name], kind) for kind in HOOKS if getattr(before[name], kind)}
    try:
        copies = {kind: copy.deepcopy(hooks, copying) for kind, hooks in copies.items()}
    except Exception:  # noqa: BLE001 - objects may refuse to be copied in any way
        return None
    rebind({key: held for key, held in copying.items() if key not in own and key != id(copying)})
    return [(kind, hook) for kind, hooks in copies.items() for hook in hooks.values()]


def _first_error(parameter: Tensor, hooks: list[tuple[str, Any]]) -> str | None:
    """Call hooks of a parameter as a backward pass does, and describe the first error."""
    shape = tuple(parameter.shape)
    steps = register_optimizer_step_pre_hook(_refuse_step)
    gradient = torch.ones_like(parameter, requires_grad=False)
    try:
        for kind, hook in hooks:
            if kind == OF_GRADIENT:
                returned = hook(gradient)
                if isinstance(returned, Tensor):
                    gradient = returned
            else:
                parameter.grad = gradient.detach().clone() if parameter.grad is None else parameter.grad
                with torch.no_grad():
                    hook(parameter)
            if tuple(gradient.shape) != shape:
                return f"it returns shape {tuple(gradient.shape)} for a gradient of shape {shape}"
    except _StepError:
        return None
    except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
        return described(error)
    finally:
        steps.remove()
        parameter.grad = None
    return None


class _StepError(Exception):
    """A hook takes a step of an optimizer, which may be one of other parameters."""


def _refuse_step(*_: object) -> None:
    raise _StepError
