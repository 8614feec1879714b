"""Inline regions of a program that switch gradients or autocast on or off."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from secateur._compat import tree_map_only


def inline_mode_regions(module: GraphModule) -> None:
    """Replace calls of regions that only switch a mode by the operators inside, in place.

    A region that switches gradients changes no number. One that switches autocast on changes the precision of
    its operators. Checks compute in float64, which autocast does not change, and all other code runs programs
    with autocast off; so what the region casts to the lower precision is cast to float32 instead.

    Args:
        module: a captured program.
    """
    found = False
    for node in list(module.graph.nodes):
        # Found one at a time: what a region is called with may be the result of the one before.
        region = _region(module, node)
        if region is not None:
            found = True
            _keep_precision(node, region[0])
            inline_mode_regions(region[0])
            _inline(module.graph, node, *region)
    if found:
        for node in list(module.graph.nodes):
            if (node.op == "get_attr" and not node.users) or _checks_dtype(node):
                module.graph.erase_node(node)
        module.recompile()


def _region(module: GraphModule, node: Node) -> tuple[GraphModule, tuple[Node, ...]] | None:
    """Find the program of a region that only switches a mode, and its arguments."""
    if node.op != "call_function":
        return None
    name = getattr(node.target, "__name__", "")
    if name == "wrap_with_set_grad_enabled":
        _, source, *operands = node.args
    elif name == "wrap_with_autocast":
        _, _, _, _, source, *operands = node.args
    else:
        return None
    assert isinstance(source, Node), "a region is an attribute of the program"
    found = module.get_submodule(str(source.target))
    assert isinstance(found, GraphModule), "a region is a program"
    return found, tuple(item for item in operands if isinstance(item, Node))


def _keep_precision(call: Node, region: GraphModule) -> None:
    """Let a region under autocast name float32 where it names the precision of autocast."""
    if getattr(call.target, "__name__", "") != "wrap_with_autocast" or call.args[2] is not True:
        return
    device, dtype = str(call.args[0]), call.args[1]
    low = torch.get_autocast_dtype(device) if dtype is None else dtype
    given = [node.meta.get("val") for node in call.all_input_nodes if node.op == "placeholder"]
    if any(isinstance(value, Tensor) and value.dtype == low for value in given):
        return  # the network is in this precision itself
    for node in region.graph.nodes:
        node.args, node.kwargs = tree_map_only(
            torch.dtype, lambda item: torch.float32 if item == low else item, (node.args, node.kwargs)
        )


def _checks_dtype(node: Node) -> bool:
    """Return whether an operator insists on a dtype, which may be that of an autocast region."""
    return str(node.target).startswith("aten._assert_tensor_metadata")


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
