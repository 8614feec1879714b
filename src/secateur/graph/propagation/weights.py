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
    fixed = _fixed(program)
    layers = {node for node in fixed if operator_name(node) in NORMALISATIONS}
    used = _used_as_weights(program, fixed) if layers else set()
    names_of_fixed = {
        node.name for node in fixed if node.op == "call_function" and (node not in layers or node in used)
    }
    return frozenset(names_of_fixed | {node.name for node in _computed_weights(program)})


def distance_sums(program: Program) -> frozenset[str]:
    """Find operators that sum squares of weights, which are then only added to other values.

    They are parts of squared distances, ``|x|² - 2xw + |w|²``, so they contract over the channels of a weight
    like the product beside them.

    Args:
        program: the captured forward pass.

    Returns:
        Names of operators.
    """
    candidates = [node for node in program.graph.nodes if operator_name(node) == "sum"]
    fixed = _fixed(program) if candidates else set()
    return frozenset(node.name for node in candidates if _is_part_of_distance(node, fixed, program))


def _fixed(program: Program) -> set[Node]:
    """Find the values whose numbers depend on parameters, buffers and constants only."""
    names, fixed = program.placeholders, set[Node]()
    for node in program.graph.nodes:
        known = node.op == "placeholder" and names[node.name].origin is not Origin.INPUT
        sources = [] if operator_name(node) in SHAPE_ONLY else node.all_input_nodes
        if known or (node.op == "call_function" and all(source in fixed for source in sources)):
            fixed.add(node)
    return fixed


_SQUARES = {"pow", "square", "mul", "abs"}
"""Operators whose result is zero where a weight is zero."""

_PASSED_ON = {
    *("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "t", "transpose", "permute", "expand"),
    *("detach", "alias", "clone", "neg", "_to_copy"),
}
"""Operators that change no number, or its sign alone."""

_ADDITIONS = {"add", "sub", "rsub", "add_", "sub_", "addmm", "baddbmm"}


def _is_part_of_distance(node: Node, fixed: set[Node], program: Program) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or operator_name(source) not in _SQUARES:
        return False
    return _made_of_weights(source, program) and _is_only_added(node, fixed)


def _made_of_weights(node: Node, program: Program) -> bool:
    """Return whether an operator reads parameters and buffers, and nothing else."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder" and program.placeholders[node.name].origin is not Origin.TENSOR:
            return False
        if node.op != "placeholder" and not node.all_input_nodes:
            return False
        waiting += node.all_input_nodes
    return True


def _is_only_added(node: Node, fixed: set[Node]) -> bool:
    """Return whether all that a fixed value is used for is an addition to values that are not fixed."""
    waiting, found = list(node.users), False
    while waiting:
        user = waiting.pop()
        name = operator_name(user)
        if user not in fixed:
            if name not in _ADDITIONS:
                return False
            found = True
        elif name in _PASSED_ON or name in _ADDITIONS or (name == "mul" and len(user.all_input_nodes) == 1):
            waiting += list(user.users)
        else:
            return False
    return found


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
