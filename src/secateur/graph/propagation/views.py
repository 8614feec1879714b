"""Find views that share the memory of a wider value: its width is then the distance of their rows."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.fx import Node

from secateur.graph.capture.nodes import operator_name
from secateur.graph.groups import IntArray
from secateur.graph.labels import Value

_RANGES = {"slice", "narrow", "split", "split_with_sizes", "chunk", "tensor_split"}
"""Operators that return ranges of a dimension in the memory of the whole."""

_VIEWS = {"view", "reshape", "unflatten", "unsqueeze", "squeeze", "transpose", "permute", "alias", "to"}
"""Other operators that may return a view."""


def left_out(node: Any, env: Mapping[Node, Any]) -> Iterator[IntArray]:
    """Follow a view back to the wider values that it is a range of.

    Args:
        node: what made the view.
        env: the value of every node so far.

    Yields:
        For each range of a last dimension, labels of what is not in it.
    """
    while isinstance(node, Node) and node.op == "call_function":
        maker = node.args[0] if node.target is operator.getitem else node
        if not isinstance(maker, Node) or not maker.args:
            return
        name = operator_name(maker)
        part, whole = env.get(node), env.get(maker.args[0])  # type: ignore[arg-type]
        if name in _RANGES and isinstance(part, Value) and isinstance(whole, Value):
            inside, every = part.labels[-1], whole.labels[-1]
            if inside is not None and every is not None:
                yield every[~np.isin(every, inside)]
        elif name not in _VIEWS:
            return
        node = maker.args[0]
