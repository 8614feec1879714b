"""Sizes that depend on values, such as the number of tokens that come to an expert.

Such a size counts positions, and is another number in every pass. Rules need numbers, so each is replaced by
what the example inputs give. Only what is noted of the results changes: the program itself goes on measuring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from secateur._compat import tree_leaves, tree_map_only

_LEAST = 2
"""A dimension of size one is followed in another way, and one of size zero not at all."""


def has_unknown_sizes(graph: Graph) -> bool:
    """Tell whether the results of some operators have sizes that depend on values."""
    return any(next(_unknown(node.meta.get("val")), None) is not None for node in graph.nodes)


def measure_sizes(module: GraphModule, values: Sequence[Any]) -> None:
    """Replace unknown sizes in what is noted of results by those of a real pass, and drop assertions on them.

    Args:
        module: the program; run once.
        values: one for each of its placeholders.
    """
    known: dict[Any, int] = {}
    with torch.no_grad():
        _Measuring(module, known).run(*values, enable_io_processing=False)

    def settled(size: SymInt) -> int | SymInt:
        number = size.node.expr.xreplace(known)
        return size if getattr(number, "free_symbols", ()) else int(number)

    for node in module.graph.nodes:
        value = node.meta.get("val")
        if next(_unknown(value), None) is not None:
            shaped = tree_map_only(Tensor, lambda item: _shaped(item, [settled(size) if isinstance(size, SymInt) else size for size in item.shape]), value)
            node.meta["val"] = tree_map_only(SymInt, settled, shaped)
    for node in reversed(module.graph.nodes):
        if str(node.target).startswith(("aten._assert_scalar", "aten.sym_constrain_range")) or (not node.users and not hasattr(node.target, "_schema") and node.op == "call_function"):
            module.graph.erase_node(node)
    module.recompile()


class _Measuring(Interpreter):
    """Run a program and note the sizes that its results have."""

    def __init__(self, module: GraphModule, known: dict[Any, int]) -> None:
        super().__init__(module)
        self._known = known

    def run_node(self, n: Node) -> Any:
        """Run one operator."""
        result = super().run_node(n)
        for noted, found in zip(tree_leaves(n.meta.get("val")), tree_leaves(result), strict=False):
            if isinstance(noted, Tensor) and isinstance(found, Tensor):
                for size, number in zip(noted.shape, found.shape, strict=True):
                    if isinstance(size, SymInt) and size.node.expr.is_symbol:
                        self._known.setdefault(size.node.expr, max(number, _LEAST))
        return result


def _unknown(value: Any) -> Iterator[SymInt]:
    for leaf in tree_leaves(value):
        sizes = leaf.shape if isinstance(leaf, Tensor) else [leaf]
        yield from (size for size in sizes if isinstance(size, SymInt))


def _shaped(tensor: Tensor, shape: Sequence[int | SymInt]) -> Tensor:
    if any(isinstance(size, SymInt) for size in shape):
        return tensor
    return torch.empty(shape, dtype=tensor.dtype, device="meta")
