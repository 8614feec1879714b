"""What every network of another library must pass: traced, cut twice, trained, saved and loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sec
from secateur.graph.capture.program import ExampleInputs, call_arguments


def leaves(output: object) -> list[Tensor]:
    """The tensors of an output, in order."""
    found = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def lively(model: nn.Module) -> nn.Module:
    """A network in evaluation mode whose scales and shifts differ from channel to channel."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model.eval()


def share_of_free(model: nn.Module, graph: sec.ChannelGraph) -> float:
    """The share of the first two dimensions of all weights that may be cut, outputs aside, by weights."""
    free = {(member.tensor, member.dim) for group in graph.prunable for member in group.members}
    outputs = {
        (member.tensor, member.dim)
        for group in graph.frozen
        if group.reason == "is an output of the network"
        for member in group.members
    } - free
    sizes = {
        (name, dim): tensor.numel()
        for name, tensor in model.named_parameters()
        if tensor.ndim > 1
        for dim in (0, 1)
        if tensor.shape[dim] > 3 and (name, dim) not in outputs
    }
    return sum(size for place, size in sizes.items() if place in free) / sum(sizes.values())


def check_cuts(
    make: Callable[[], nn.Module],
    inputs: ExampleInputs,
    folder: Path,
    share: float = 0.95,
) -> None:
    """Trace a network as it is built, cut it to half of its channels twice, train, save and load it.

    Args:
        make: builds the network.
        inputs: what to call it with.
        folder: where to save it.
        share: of the weights must be free.
    """
    model = lively(make())
    attributes = [dict(vars(module)) for module in model.modules()]
    values = copy.deepcopy(model.state_dict())
    graph = sec.trace(model, inputs)
    for module, before in zip(model.modules(), attributes, strict=True):
        assert list(vars(module)) == list(before)
        assert all(vars(module)[key] is value for key, value in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in values.items())
    assert share_of_free(model, graph) >= share, str(graph)
    for criterion in ("random", "magnitude"):
        scores = sec.score(model, graph, criterion)
        plan = sec.make_plan(graph, scores, sec.Budget(channels=0.5), allocation="uniform")
        small = sec.apply_plan(model, plan)
        check = sec.verify(model, small, plan, inputs)
        assert check.ok, check
        model, graph = small, graph.after(plan)
    args, kwargs = call_arguments(inputs)
    made = model.train()(*args, **kwargs)
    torch.stack([leaf.square().mean() for leaf in leaves(made) if leaf.requires_grad]).sum().backward()
    sec.save(folder / "small.safetensors", model.eval())
    again = sec.load(folder / "small.safetensors", model=make()).eval()
    with torch.no_grad():
        pairs = zip(leaves(model(*args, **kwargs)), leaves(again(*args, **kwargs)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


class Plain(nn.Module):
    """A network that returns tuples instead of objects of its library."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, **inputs: Any) -> Any:
        return self.net(**inputs, return_dict=False)
