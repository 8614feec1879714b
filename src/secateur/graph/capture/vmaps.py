"""Replace what ``torch.vmap`` runs for single examples by operators on whole tensors."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secateur._compat import FakeTensor, is_batched, tree_map_only
from secateur.errors import TraceError
from secateur.formats import first_line
from secateur.graph.capture.composites import substitute
from secateur.graph.capture.nodes import draws_numbers, module_path, operator_name
from secateur.graph.capture.operators import DROPOUTS

_START, _END, _INTO, _OUT = (
    "_vmap_increment_nesting",
    "_vmap_decrement_nesting",
    "_add_batch_dim",
    "_remove_batch_dim",
)
"""What an export records of a call of ``torch.vmap``."""


def expand_vmaps(module: GraphModule) -> None:
    """Replace every operator inside ``torch.vmap`` by what it computes on whole tensors, in place.

    Linear layers stay whole, so that their attributes follow their widths. Of a call inside another one, the
    inner one is replaced first. The marks of a call must not stay: a program that fails between them would
    leave PyTorch inside the call.

    Args:
        module: a captured program; the result of every operator is noted as ``val``.

    Raises:
        TraceError: an operator cannot be replaced.
    """
    _forget_levels(module)
    found = False
    while region := _innermost(module):
        found = True
        try:
            _expand(module, region)
        except Exception as error:
            path = module_path(region[-1])
            place = f" in '{path}'" if path else ""
            raise TraceError(
                f"the network could not be captured{place}: what it runs in torch.vmap cannot be written for "
                "whole tensors. Call the function on whole tensors, or trace only a submodule that does not "
                f"do this. PyTorch says: {first_line(error)}"
            ) from error
    if found:
        module.recompile()


def _forget_levels(module: GraphModule) -> None:
    """Replace the noted values of single examples, which end with their call, by plain ones of a shape."""
    values = {node: node.meta.get("val") for node in module.graph.nodes}
    modes = (value.fake_mode for value in values.values() if isinstance(value, FakeTensor))
    with next(modes, nullcontext()):
        for node, value in values.items():
            if isinstance(value, Tensor) and is_batched(value):
                node.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device=value.device)


def _name(node: Node) -> str:
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def _innermost(module: GraphModule) -> list[Node]:
    """List the nodes of the first call inside which there is no other one, with its marks."""
    region: list[Node] = []
    for node in module.graph.nodes:
        if _name(node) == _START:
            region = []
        region.append(node)
        if _name(node) == _END:
            return region
    return []


def _expand(module: GraphModule, region: list[Node]) -> None:
    """Replace the nodes of a call; batched values have the batch dimension first."""
    mapped: set[Node] = set()
    examples, randomness = region[0].args[:2]
    assert isinstance(examples, int)
    assert isinstance(randomness, str)
    for node in region:
        if node not in module.graph.nodes:
            continue  # a piece of a result that was replaced
        numbers = [item for item in node.args if isinstance(item, int)]
        if _name(node) in (_START, _END):
            module.graph.erase_node(node)
        elif _name(node) == _INTO:  # of a tensor: dimension, level
            mapped.update(substitute(module.graph, node, partial(_in_front, dim=numbers[0])))
        elif _name(node) == _OUT:  # of a tensor: level, count, dimension
            _, count, dim = numbers
            back = partial(_moved_back, dim=dim)
            again = partial(_repeated, count=count, dim=dim)
            substitute(module.graph, node, back if node.args[0] in mapped else again)
        elif any(item in mapped for item in node.all_input_nodes):
            if node.meta.get("val") is None and not node.users:
                module.graph.erase_node(node)  # an assertion on one example
            elif _is_whole(node, mapped):
                values, named = tree_map_only(Node, lambda item: item.meta["val"], (node.args, node.kwargs))
                node.meta["val"] = node.target(*values, **named)  # type: ignore[operator]
                mapped.add(node)
            else:
                mapped.update(substitute(module.graph, node, _for_each(node, mapped, randomness)))
        elif randomness == "different" and draws_numbers(node):
            drawn = _for_each(node, mapped, randomness, examples)
            mapped.update(substitute(module.graph, node, drawn))


def _in_front(x: Tensor, *, dim: int) -> Tensor:
    return x.movedim(dim, 0)


def _moved_back(x: Tensor, *, dim: int) -> Tensor:
    return x.movedim(0, dim)


def _repeated(x: Tensor, *, count: int, dim: int) -> Tensor:
    """Repeat a result that is the same for all examples."""
    return x.expand(count, *x.shape).movedim(0, dim)


def _is_whole(node: Node, mapped: set[Node]) -> bool:
    """Return whether an operator takes any number of leading dimensions, as a linear layer and dropout do.

    A dropout stays one, as the check knows it, also if all examples are to lose the same values.
    """
    known = node.target is torch.ops.aten.linear.default or operator_name(node).removesuffix("_") in DROPOUTS
    return known and mapped.isdisjoint(node.all_input_nodes[1:])


def _for_each(node: Node, mapped: set[Node], randomness: str, examples: int | None = None) -> Any:
    """Make a function of the arguments of a node that runs its operator for each example.

    Args:
        node: the operator.
        mapped: the values that have the examples in front.
        randomness: whether examples get ``"different"`` random numbers, or the ``"same"``.
        examples: how many there are, if no argument of the operator has them in front.
    """
    operands = node.all_input_nodes

    def run(_: Tensor | None, *tensors: Tensor) -> Any:
        given = dict(zip(operands, tensors, strict=True))
        args, kwargs = tree_map_only(Node, given.__getitem__, (node.args, node.kwargs))
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def run_all(*tensors: Tensor) -> Any:
        counted = None if examples is None else torch.empty(examples)
        places = (None if counted is None else 0, *(0 if item in mapped else None for item in operands))
        return torch.vmap(run, in_dims=places, randomness=randomness)(counted, *tensors)

    return run_all
