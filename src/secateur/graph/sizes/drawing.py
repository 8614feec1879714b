"""Find the numbers with which operators draw, limit and compute.

Names are those that the recorder gives to all forms of an operator: ``normal`` for ``normal_`` too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from secateur._compat import tree_leaves

_PROBABILITIES = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}
"""Functions with a dropout inside, and the position of its probability, ``dropout_p``."""

# fmt: off
_DISTRIBUTIONS = frozenset({
    "bernoulli", "binomial", "cauchy", "exponential", "geometric", "log_normal", "normal", "poisson",
    "uniform",
})
"""Operators that draw random numbers with parameters; their sizes are those of a tensor, or a tuple."""

_DRAWING = _DISTRIBUTIONS | {"multinomial", "rand", "randint", "randn", "randperm"}
"""Operators that draw random numbers, without the forms that take their size from a tensor."""

_LIMITS = frozenset({
    "clamp", "clamp_max", "clamp_min", "clip", "eq", "fmax", "fmin", "ge", "greater", "greater_equal", "gt",
    "hardshrink", "hardtanh", "le", "less", "less_equal", "lt", "masked_fill", "maximum", "minimum",
    "nan_to_num", "ne", "softshrink", "threshold",
})
"""Operators that compare values with numbers, or limit them: a number may matter for few values only."""

_WITH_INTEGERS = _LIMITS | {
    "add", "div", "fill", "full", "full_like", "mul", "new_full", "pow", "rsub", "scalar_tensor", "sub",
}
"""Operators of which an integer is a number to compute with, not a size or a dimension."""
# fmt: on

_OF_NUMBERS = frozenset({"new_tensor", "tensor"})
"""Operators that make a tensor of the numbers of an argument, which may be a list of them."""

_PARTS = frozenset({"chunk", "narrow", "slice", "split"})
"""Operators that take a part of a tensor as it is."""


def draws(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operator draws random numbers; dropout of a tensor does not count."""
    if name in _PROBABILITIES:
        return _probability(name, args, kwargs) > 0
    return name.removesuffix("_like") in _DRAWING


def limits(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operator compares floating-point values with something, or limits them.

    Limits of integers are those of indices, which follow the number of what they count.
    """
    return name in _LIMITS and any(item.is_floating_point() for item in tensors_read(name, args, kwargs))


def numbers_in(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """List the numbers among the arguments of an operator with which it computes."""
    if name in _PROBABILITIES:
        return (_probability(name, args, kwargs),)
    found = [item for item in tree_leaves((args, kwargs)) if isinstance(item, float)]
    if name in _OF_NUMBERS:
        found += _integers(chain.from_iterable(map(_entries, args)))
    elif name in _DISTRIBUTIONS or name in _WITH_INTEGERS:
        found += _integers((*args, *kwargs.values()))
    return tuple(map(float, found))


def counts_chosen_among(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> tuple[float, ...]:
    """List the sizes and integers that say among how many random numbers an operator chooses.

    A minimum, a sum or a choice of the k-th of random numbers depends on their number, which the result does
    not show.

    Returns:
        The sizes of the arguments, and the integers among them; nothing if the result has as many numbers, or
        is only a part of them.
    """
    given = tensors_read(name, args, kwargs)
    if name in _PARTS or not isinstance(result, Tensor) or not given:
        return ()
    if result.numel() >= max(item.numel() for item in given):
        return ()
    sizes = [size for item in given for size in item.shape]
    return tuple(map(float, [*sizes, *_integers(tree_leaves((args, kwargs)))]))


def tensors_read(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """List the tensors whose values an operator reads; some take only size and dtype of their first."""
    given = args[1:] if name.endswith("_like") or name.startswith("new_") else args
    return [item for item in tree_leaves((given, kwargs)) if isinstance(item, Tensor)]


def _entries(data: Any) -> list[Any]:
    """List the numbers of the argument that a tensor is made of."""
    return tree_leaves(tuple(data) if isinstance(data, torch.Size) else data)


def _integers(items: Iterable[Any]) -> list[int]:
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool)]


def _probability(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    place = _PROBABILITIES[name]
    return float(args[place] if len(args) > place else kwargs.get("dropout_p", 0.0))
