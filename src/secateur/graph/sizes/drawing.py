"""Say which operators draw random numbers, and with which numbers operators compute.

Names are those that the recorder gives to all forms of an operator: ``normal`` for ``normal_`` too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

_COMPUTING = frozenset({
    "add", "clamp", "div", "eq", "fill", "full", "full_like", "ge", "gt", "le", "lt", "mul", "ne", "new_full",
    "new_tensor", "pow", "rsub", "scalar_tensor", "sub", "tensor",
})
"""Operators of which an integer is a number to compute with, not a size or a dimension."""
# fmt: on


def draws(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operator draws random numbers; dropout of a tensor does not count."""
    if name in _PROBABILITIES:
        return _probability(name, args, kwargs) > 0
    return name.removesuffix("_like") in _DRAWING


def numbers_in(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """List the numbers among the arguments of an operator with which it computes."""
    if name in _PROBABILITIES:
        return (_probability(name, args, kwargs),)
    found = [item for item in tree_leaves((args, kwargs)) if isinstance(item, float)]
    if name in _DISTRIBUTIONS or name in _COMPUTING:
        given = (*args, *kwargs.values())
        found += [item for item in given if isinstance(item, int) and not isinstance(item, bool)]
    return tuple(map(float, found))


def tensors_read(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """List the tensors whose values an operator reads; some take only size and dtype of their first."""
    given = args[1:] if name.endswith("_like") or name.startswith("new_") else args
    return [item for item in tree_leaves((given, kwargs)) if isinstance(item, Tensor)]


def _probability(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    place = _PROBABILITIES[name]
    return float(args[place] if len(args) > place else kwargs.get("dropout_p", 0.0))
