"""Read what a node of a captured program says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node


def operator_name(node: Node) -> str:
    """Return the name of an operator: ``relu_`` for ``aten.relu_.default``; empty for everything else.

    Operators of other libraries than PyTorch itself are named with it, as in ``library::operator``.
    """
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")


def named_arguments(node: Node) -> dict[str, Any]:
    """Return the arguments of an operator of PyTorch by their names, with defaults; empty for all else."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


def draws_numbers(node: Node) -> bool:
    """Return whether an operator draws random numbers: dropout that is switched off does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    found = named_arguments(node)
    off = found.get("train") is False or found.get("training") is False
    return not off and not (str(node.target).startswith("aten.scaled_dot") and not found.get("dropout_p"))


def module_calls(node: Node) -> Mapping[str, str]:
    """Return the module calls that an operator runs in, from the outside in, with the path of each module.

    A module that is called twice has two calls.
    """
    stack = node.meta.get("nn_module_stack") or {}
    return {call: str(path) for call, (path, _) in stack.items()}


def module_paths(node: Node) -> tuple[str, ...]:
    """List the paths of the modules that an operator runs in, from the outside in."""
    return tuple(module_calls(node).values())


def module_path(node: Node) -> str:
    """Return the path of the innermost module that ran an operator; empty for the network itself."""
    return next(reversed(module_paths(node)), "")


def operator_place(node: Node) -> str:
    """Name an operator and the module that ran it, for messages: ``relu in 'layer1'``."""
    path, name = module_path(node), (operator_name(node) or str(node.target)).rpartition("::")[2]
    return f"{name} in '{path}'" if path else name
