"""Refuse arguments of another kind than a function takes, such as a network in place of its graph."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from secateur.errors import UsageError


class _Wanted(NamedTuple):
    """What an argument of a certain name must be."""

    attribute: str
    """What an object of this kind has: its class is not imported, which may take seconds or go upwards."""
    words: str
    """What to pass, for the message."""


_NETWORK = _Wanted("named_modules", "a network (an instance of torch.nn.Module)")

_WANTED = {
    "model": _NETWORK,
    "pruned": _NETWORK,
    "graph": _Wanted(
        "groups",
        "the channel graph that sec.trace(model, example_inputs) returns",
    ),
    "plan": _Wanted("keep", "a pruning plan, as sec.make_plan and sec.plan_from make it"),
    "budget": _Wanted("given", "a budget, such as sec.Budget(macs=0.5)"),
    "scores": _Wanted("items", "scores by the names of groups, as sec.score(model, graph) returns them"),
    "keep": _Wanted(
        "items",
        "a mapping from names of groups to channels that stay: {'conv1': [0, 3]}",
    ),
    "remove": _Wanted("items", "a mapping from names of modules to positions to remove: {'conv1': [0, 3]}"),
}


def check_arguments(**given: Any) -> None:
    """Refuse arguments of another kind than their names promise.

    Args:
        given: arguments of a public function by name, of those that are listed here: ``model``, ``pruned``,
            ``graph``, ``plan``, ``budget``, ``scores``, ``keep`` and ``remove``.

    Raises:
        UsageError: one is of another kind; the message says what was given, and what to pass.

    Example:
        >>> check_arguments(keep={"conv1": [0]})
        >>> check_arguments(budget=0.5)
        Traceback (most recent call last):
        secateur.errors.UsageError: budget is 0.5: pass a budget, such as sec.Budget(macs=0.5)
    """
    for name, value in given.items():
        wanted = _WANTED[name]
        if isinstance(value, type) or not hasattr(value, wanted.attribute):
            raise UsageError(f"{name} is {_described(value)}: pass {wanted.words}")


def _described(value: object) -> str:
    """Describe what was given in a few words."""
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, type):
        return f"the class {value.__name__}, not an object of it"
    if inspect.ismethod(value):
        return f"the method {value.__name__} of a {type(value.__self__).__name__}"
    if inspect.isfunction(value) or inspect.isbuiltin(value):
        return f"the function {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
