"""Show the operators inside functions of ``torch.nn.functional`` to a function mode.

A mode sees ``multi_head_attention_forward`` as one call, because the function asks for modes before it
starts. A mode sees each operator inside a copy of the function that does not ask.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache
from typing import Any

from secateur.graph.capture.covariance import WRITTEN_OUT

_QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@cache
def opened(function: Any) -> Callable[..., Any] | None:
    """Copy a Python function of ``torch.nn.functional`` so that function modes see the calls inside it.

    A function that a capture replaces by others is replaced here too.

    Args:
        function: what a function mode was given.

    Returns:
        The copy; ``None`` for anything else, such as an operator written in C++.

    Example:
        >>> import torch
        >>> opened(torch.nn.functional.multi_head_attention_forward).__name__
        'multi_head_attention_forward'
        >>> opened(torch.conv2d) is None
        True
    """
    if function in WRITTEN_OUT:
        return WRITTEN_OUT[function]
    if not isinstance(function, types.FunctionType) or function.__module__ != "torch.nn.functional":
        return None
    if not any(name in function.__code__.co_names for name in _QUESTIONS):
        return None
    names = {**function.__globals__, **dict.fromkeys(_QUESTIONS, _no)}
    copied = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _no(*_: Any) -> bool:
    return False
