"""Leave out of a program what it computes for a removed residual branch: zeros that are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from secateur.graph.capture.nodes import operator_name

# fmt: off
_KEEP_ZEROS = frozenset({
    "_to_copy", "_unsafe_view", "alias", "avg_pool2d", "clone", "contiguous", "detach", "dropout", "expand",
    "flatten", "gelu", "lift_fresh_copy", "mean", "neg", "permute", "relu", "reshape", "roll", "select",
    "silu", "slice", "squeeze", "sum", "t", "tanh", "to", "transpose", "unflatten", "unsqueeze", "view",
})
# fmt: on
"""Operators that make zeros of zeros."""


def folded(program: ExportedProgram) -> ExportedProgram:
    """Leave zeros that are added out of a program, with all that only they need.

    In the place of a removed branch, a network adds zeros, since its code adds something.

    Args:
        program: the captured network; may be changed.

    Returns:
        The program without these additions, as operators that write to none of their arguments.
    """
    program = program.run_decompositions({})
    graph = program.graph_module.graph
    zeros: set[Node] = set()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if _is_zero(node, zeros):
            zeros.add(node)
        elif operator_name(node) == "add":
            left, right = node.args[:2]
            rest = left if right in zeros else right if left in zeros else None
            if rest is not None and node.kwargs.get("alpha", 1) == 1 and _kind(rest) == _kind(node):
                node.replace_all_uses_with(rest)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is_zero(node: Node, zeros: set[Node]) -> bool:
    """Return whether the result of an operator is zero, whatever the inputs of the network are."""
    operator, args = operator_name(node), node.args
    if operator == "zeros_like":
        return True
    if operator == "mul":
        return args[0] in zeros or args[1] in zeros
    if operator == "add":
        return args[0] in zeros and args[1] in zeros
    return (operator in _KEEP_ZEROS or operator == "div") and bool(args) and args[0] in zeros


def _kind(node: Any) -> tuple[Any, ...] | None:
    """Return shape and dtype of a value; sizes that follow the batch by their names."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, Tensor):
        return None
    sizes: Sequence[Any] = value.shape
    return (*map(str, sizes), value.dtype)
