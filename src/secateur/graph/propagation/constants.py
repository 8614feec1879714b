"""Find constants in a program: tensors filled with one number, and values computed from parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node

from secateur.graph.capture.nodes import operator_name
from secateur.graph.capture.operators import COPIES, FILLED, REPEATED
from secateur.graph.labels import Value

_PASSED_ON = COPIES | {"type_as", "detach", "alias", "zero_", "fill_"}
"""Operators that keep the shape of a constant."""


def makers(node: Any, dim: int, env: Mapping[Node, Any]) -> list[Node]:
    """Find the operators that create a constant and keep its shape.

    Args:
        node: the value that may be a constant.
        dim: the dimension in which it must be constant, counted from the front.
        env: the value of every node so far.

    Returns:
        The operators, the last one first; empty if the value is no constant.
    """
    chain: list[Node] = []
    while isinstance(node, Node) and node.op == "call_function":
        chain.append(node)
        name = operator_name(node)
        if name in FILLED:
            return chain
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        before = env.get(source) if source is not None else None
        if not isinstance(before, Value):
            return []
        if name in REPEATED:
            place = dim - len(env[chain[0]].shape) + len(before.shape)
            return chain if place < 0 or before.shape[place] == 1 else []
        if name not in _PASSED_ON:
            return []
        node = source
    return []


def is_fixed(items: Iterable[Any], env: Mapping[Node, Any]) -> bool:
    """Return whether values are computed from parameters and buffers only.

    Args:
        items: nodes; anything else is a fixed number.
        env: the value of every node so far; those of parameters and buffers have labels in all dimensions.
    """
    left, seen = list(items), set()
    while left:
        node = left.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        value = env.get(node)
        labels = value.labels if node.op == "placeholder" and isinstance(value, Value) else ()
        if labels and all(own is None for own in labels):
            return False
        left.extend(node.all_input_nodes)
    return True


def is_unregistered(node: Node, constants: Mapping[str, Any]) -> bool:
    """Return whether a value is computed only from tensors that are neither parameters, buffers nor inputs.

    Args:
        node: the value.
        constants: such tensors, by the node that stands for each.
    """
    left, seen, found = [node], set(), False
    while left:
        item = left.pop()
        if item in seen:
            continue
        seen.add(item)
        if item.op == "placeholder":
            if item.name not in constants:
                return False
            held = constants[item.name]
            found = found or (isinstance(held, Tensor) and held.numel() > 1)
        left.extend(item.all_input_nodes)
    return found
