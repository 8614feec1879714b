"""Regions of a program that only switch a mode are laid open: what runs in them is all that counts here."""

from __future__ import annotations

import operator

from torch.fx import Graph, GraphModule, Node


def lay_regions_open(module: GraphModule) -> None:
    """Replaces calls of regions without effect on the numbers by the operators inside, in place.

    Regions that switch gradients on or off are such, and regions that switch autocast off. Those that
    switch it on change numbers, and stay.

    Args:
        module: a captured program.
    """
    found = False
    for node in list(module.graph.nodes):
        # Asked for one at a time: what a region is called with may be the result of the one before.
        region = _region(module, node)
        if region is not None:
            found = True
            lay_regions_open(region[0])
            _inline(module.graph, node, *region)
    if found:
        for node in list(module.graph.nodes):
            if node.op == "get_attr" and not node.users:
                module.graph.erase_node(node)
        module.recompile()


def _region(module: GraphModule, node: Node) -> tuple[GraphModule, tuple[Node, ...]] | None:
    """The program of a region that may be laid open, and what it is called with."""
    if node.op != "call_function":
        return None
    name = getattr(node.target, "__name__", "")
    if name == "wrap_with_set_grad_enabled":
        _, source, *operands = node.args
    elif name == "wrap_with_autocast" and node.args[2] is False:
        _, _, _, _, source, *operands = node.args
    else:
        return None
    assert isinstance(source, Node), "a region is an attribute of the program"
    found = module.get_submodule(str(source.target))
    assert isinstance(found, GraphModule), "a region is a program"
    return found, tuple(item for item in operands if isinstance(item, Node))


def _inline(graph: Graph, call: Node, region: GraphModule, operands: tuple[Node, ...]) -> None:
    inner = [node for node in region.graph.nodes if node.op == "placeholder"]
    values: dict[Node, Node] = dict(zip(inner, operands, strict=True))
    with graph.inserting_before(call):
        results = graph.graph_copy(region.graph, values)
    assert isinstance(results, tuple | list), "a region returns a tuple"
    for user in list(call.users):
        assert user.target is operator.getitem, "results of a region are taken one by one"
        user.replace_all_uses_with(results[int(str(user.args[1]))])
        graph.erase_node(user)
    graph.erase_node(call)
