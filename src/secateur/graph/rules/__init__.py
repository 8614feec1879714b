"""Keep the table of rules: for each operator, what it does to labels.

A rule is a small function ``rule(op) -> Value`` (or a list of values for an operator with
several results). It reads its arguments from the op, says which labels are equal, and hands
back the labels of the result. Operators without a rule are never assumed to be element-wise:
what they read and write is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from secateur.errors import UsageError
from secateur.graph.labels import Value

if TYPE_CHECKING:
    from secateur.graph.propagation.rule_context import RuleContext

Rule = Callable[["RuleContext"], "Value | Sequence[Value]"]

_TABLE: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators.

    Args:
        operators: names such as ``"aten.conv2d"``; all overloads and the in-place form
            (``relu_`` beside ``relu``) are meant.

    Returns:
        A decorator that leaves the function as it is.
    """

    def register(function: Rule) -> Rule:
        for operator in operators:
            _TABLE[operator] = function
        return function

    return register


def register_rule(*operators: str, replace: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for your own operators.

    Whatever such an operator touches is frozen until it has a rule. A wrong rule cuts nothing wrong: every
    group is checked by a trial cut, and frozen if the numbers differ.

    Args:
        operators: qualified names, ``"library::operator"`` or ``"library.operator"``, without overload.
        replace: whether rules that are there already may be replaced.

    Returns:
        A decorator for a function that takes a :class:`secateur.graph.OperatorContext` and returns the
        :class:`secateur.graph.Value` of the result, or a list of them for several results.

    Raises:
        UsageError: a name is not qualified, or has a rule.

    Example:
        >>> @register_rule("doctest::scaled")
        ... def scaled(op):
        ...     return op.first()
        >>> find_rule("doctest.scaled.default") is scaled
        True
    """
    names = [operator.replace("::", ".") for operator in operators]
    for name in names:
        if name.count(".") != 1:
            raise UsageError(f"'{name}' names no operator; write 'library::operator', without overload")
        if find_rule(name) is not None and not replace:
            raise UsageError(f"operator '{name}' has a rule; pass replace=True to put another in its place")
    return rule(*names)


def find_rule(operator: str) -> Rule | None:
    """Find the rule of an operator, given as ``aten.relu_.default``; ``None`` if there is none.

    Example:
        >>> find_rule("aten.relu_.default") is find_rule("aten.gelu.default")
        True
        >>> find_rule("aten.not_an_operator.default") is None
        True
    """
    _load()
    name = ".".join(operator.split(".")[:2])
    return _TABLE.get(name) or _TABLE.get(name.removesuffix("_"))


def _load() -> None:
    """Fill the table; the families import this module, so they are imported only when needed."""
    from secateur.graph.rules import (  # noqa: F401
        attention,
        cells,
        convolution,
        distances,
        einsum,
        elementwise,
        grouped,
        indexing,
        linear,
        normalisation,
        parametrised,
        pooling,
        quantising,
        rearrange,
        recurrent,
        reduction,
        refused,
        sampling,
        scattering,
        shape,
        spectral,
        split,
    )
