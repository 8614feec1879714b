"""Find the operators that compute weights."""

from __future__ import annotations

from torch.fx import Node

from secateur.graph.capture.nodes import named_arguments, operator_name
from secateur.graph.capture.operators import LAYERS, NORMALISATIONS, PRODUCTS, SHAPE_ONLY
from secateur.graph.capture.program import Origin, Program

_PRODUCTS = {*PRODUCTS, "einsum", "bilinear"}
"""Operators of which every operand may be a weight."""


def weight_operators(program: Program) -> frozenset[str]:
    """Find operators whose numbers depend on parameters and buffers only, or that make a weight of a layer.

    A statistic of a weight is not taken from the channels that are kept: the original network computes it
    over the whole weight. Normalisation layers are different where they act on values that flow through the
    network, such as learned queries; they count here only if their result is used as a weight.

    Args:
        program: the captured forward pass.

    Returns:
        Names of operators.
    """
    names, fixed = program.placeholders, set[Node]()
    for node in program.graph.nodes:
        known = node.op == "placeholder" and names[node.name].origin is not Origin.INPUT
        sources = [] if operator_name(node) in SHAPE_ONLY else node.all_input_nodes
        if known or (node.op == "call_function" and all(source in fixed for source in sources)):
            fixed.add(node)
    layers = {node for node in fixed if operator_name(node) in NORMALISATIONS}
    used = _used_as_weights(program, fixed) if layers else set()
    names_of_fixed = {
        node.name for node in fixed if node.op == "call_function" and (node not in layers or node in used)
    }
    return frozenset(names_of_fixed | {node.name for node in _computed_weights(program)})


def _computed_weights(program: Program) -> set[Node]:
    """Find operators on the way to the weight of a layer, whether or not it depends on the inputs."""
    found: set[Node] = set()
    waiting = [
        item for node in program.graph.nodes if operator_name(node) in LAYERS for item in _weights_of(node)
    ]
    while waiting:
        node = waiting.pop()
        if node in found or node.op != "call_function":
            continue
        if operator_name(node) in NORMALISATIONS or _weights_of(node):
            continue  # what a layer or a product makes is made of values that flow through the network
        found.add(node)
        waiting += node.all_input_nodes
    return found


def _used_as_weights(program: Program, fixed: set[Node]) -> set[Node]:
    """Find fixed values that become a weight without passing a layer first."""
    found: set[Node] = set()
    waiting = [item for node in program.graph.nodes for item in _weights_of(node) if item in fixed]
    while waiting:
        node = waiting.pop()
        if node not in found and node.op == "call_function":
            found.add(node)
            layer = _weights_of(node) and operator_name(node) not in NORMALISATIONS
            waiting += [] if layer else node.all_input_nodes
    return found


def _weights_of(node: Node) -> list[Node]:
    """List the arguments of an operator that are its weights."""
    if operator_name(node) in _PRODUCTS:
        return list(node.all_input_nodes)
    found = named_arguments(node).get("weight")
    return [found] if isinstance(found, Node) else []
