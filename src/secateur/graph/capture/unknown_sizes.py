"""Choose numbers for sizes that depend on values, such as the number of tokens that come to an expert.

Such a size differs in every pass, but rules and costs need a number: the mean is used. What several masks of
a module pick from is divided evenly among them. Only recorded shapes change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Graph, Node

from secateur._compat import tree_leaves, tree_map_only
from secateur.graph.capture.nodes import module_path

_LEAST = 2
"""A dimension of size one is followed in another way, and one of size zero not at all."""


def settle_sizes(graph: Graph) -> None:
    """Replace sizes that depend on values by numbers in what is noted of results; drop assertions on them.

    Args:
        graph: a captured program; sizes that no mask determines stay unknown.
    """
    known = _mean_sizes(graph)
    if not known:
        return

    def settled(size: SymInt) -> int | SymInt:
        number = size.node.expr.xreplace(known)
        return size if getattr(number, "free_symbols", ()) else int(number)

    for node in graph.nodes:
        value = node.meta.get("val")
        if any(True for _ in _unknown(value)):
            value = tree_map_only(Tensor, lambda item: _shaped(item, settled), value)
            node.meta["val"] = tree_map_only(SymInt, settled, value)
    for node in reversed(graph.nodes):
        is_number = node.op == "call_function" and not hasattr(node.target, "_schema")
        if str(node.target).startswith("aten._assert_scalar") or (is_number and not node.users):
            graph.erase_node(node)


def _mean_sizes(graph: Graph) -> dict[Any, int]:
    """Choose the number for every unknown size that says how many a mask picks."""
    masks: dict[tuple[str, int], dict[Node, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for node in graph.nodes:
        if any(isinstance(item.meta.get("val"), SymInt) for item in node.all_input_nodes):
            continue  # a border that depends on values says nothing of what lies between borders
        mask = next((item for item in reversed(node.all_input_nodes) if _is_countable(item)), None)
        for symbol in node.meta.get("unbacked_bindings") or ():
            if mask is not None and isinstance(node.meta.get("val"), Tensor | Sequence):
                masks[module_path(node), mask.meta["val"].numel()][mask].append(symbol)
    return {
        symbol: max(count // len(found), _LEAST)
        for (_, count), found in masks.items()
        for symbols in found.values()
        for symbol in symbols
    }


def _is_countable(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not any(True for _ in _unknown(value))


def _unknown(value: Any) -> Iterator[SymInt]:
    for leaf in tree_leaves(value):
        sizes: Sequence[Any] = leaf.shape if isinstance(leaf, Tensor) else [leaf]
        yield from (size for size in sizes if isinstance(size, SymInt))


def _shaped(tensor: Tensor, settled: Callable[[SymInt], int | SymInt]) -> Tensor:
    """Make a tensor of the same shape with all sizes settled; return the tensor itself if some are not."""
    sizes: Sequence[Any] = tensor.shape
    shape = [settled(size) if isinstance(size, SymInt) else size for size in sizes]
    if any(isinstance(size, SymInt) for size in shape):
        return tensor
    return torch.empty(shape, dtype=tensor.dtype, device="meta")
