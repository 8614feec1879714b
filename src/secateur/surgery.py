"""Surgery: applying a plan to a module, and to the optimizer that trains it."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.errors import SurgeryError
from secateur.graph.cutting import (
    by_tensor,
    copy_with,
    cut_tensor,
    forget_flat_weights,
    named_tensors,
    renew_flat_weights,
    set_attributes,
)
from secateur.graph.groups import IntArray

if TYPE_CHECKING:
    from secateur.plan import PruningPlan


def apply_plan(
    model: nn.Module, plan: PruningPlan, *, optimizer: Optimizer | None = None, inplace: bool = False
) -> nn.Module:
    """Cuts the channels that a plan removes out of a network, each tensor once.

    Args:
        model: the network that the plan was made for.
        plan: what stays.
        optimizer: an optimizer over the network's parameters. Its state (momentum, Adam moments,
            anything of a parameter's shape) is cut alike, so training goes on with the same object.
            Unless ``inplace``, it is moved over to the parameters of the returned network.
        inplace: cut the network itself, keeping the identity of its parameters, instead of a copy.
            Gradients are cleared.

    Returns:
        The smaller network: a copy, or the network itself if ``inplace``.

    Raises:
        SurgeryError: the plan does not fit the network, a parameter is held by something that
            cannot follow (a DistributedDataParallel wrapper), or the network cannot be copied.
            The network and the optimizer are then as they were.

    Example:
        >>> import torch
        >>> from secateur.graph.tracing import trace
        >>> from secateur.plan import plan_from
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> graph = trace(net, torch.zeros(1, 4))
        >>> small = apply_plan(net, plan_from(graph, {"0": [1, 5]}))
        >>> small[0].out_features, small[2].weight.shape, net[0].out_features
        (6, torch.Size([2, 6]), 8)
    """
    tensors = named_tensors(model)
    _check_fit(model, plan, tensors)
    kept = by_tensor(plan.kept_slots)
    if inplace:
        _cut_in_place(model, plan, {name: tensors[name] for name in kept}, kept, optimizer)
        return model
    cut = {name: cut_tensor(tensors[name], dims) for name, dims in kept.items()}
    small = copy_with(model, cut, plan.edits)
    if optimizer is not None:
        _move_optimizer(optimizer, model, small, kept)
    return small


def _check_fit(model: nn.Module, plan: PruningPlan, tensors: Mapping[str, Tensor]) -> None:
    """Refuses a network whose tensors are not those of the plan's graph."""
    for name, shape in plan.graph.tensors.items():
        found = tensors.get(name)
        if found is None:
            raise SurgeryError(
                f"{type(model).__name__} has no tensor '{name}': the plan was made for another network"
            )
        if tuple(found.shape) != shape:
            raise SurgeryError(
                f"'{name}' has shape {tuple(found.shape)}, the plan expects {shape}: the plan was made for "
                "another network, or has been applied already"
            )


@dataclass(frozen=True)
class _Swap:
    """A parameter and its replacement, to be exchanged."""

    old: nn.Parameter
    new: nn.Parameter
    grad: Tensor | None


def _cut_in_place(
    model: nn.Module,
    plan: PruningPlan,
    tensors: Mapping[str, Tensor],
    kept: Mapping[str, Mapping[int, IntArray]],
    optimizer: Optimizer | None,
) -> None:
    """Exchanges every cut tensor; on failure everything is put back."""
    cuts = {tensors[name]: dims for name, dims in kept.items()}
    state = {} if optimizer is None else _cut_state(optimizer, cuts)
    swaps: list[_Swap] = []
    buffers: list[tuple[nn.Module, str, Tensor]] = []
    attributes = set_attributes(model, plan.edits)
    forget_flat_weights(model)
    try:
        for name, dims in kept.items():
            old = tensors[name]
            if isinstance(old, nn.Parameter):
                swaps.append(_swap(name, old, cut_tensor(old, dims)))
            else:
                new = cut_tensor(old, dims)
                buffers.extend((module, leaf, old) for module, leaf in _holders(model, old))
                for module, leaf in _holders(model, old):
                    module._buffers[leaf] = new
    except Exception:
        for swap in reversed(swaps):
            torch.utils.swap_tensors(swap.old, swap.new)
            swap.old.grad = swap.grad
        for module, leaf, old in buffers:
            module._buffers[leaf] = old
        set_attributes(model, attributes)
        raise
    finally:
        renew_flat_weights(model)
    if optimizer is not None:
        for parameter, entries in state.items():
            optimizer.state[parameter].update(entries)


def _swap(name: str, old: nn.Parameter, data: Tensor) -> _Swap:
    grad = old.grad
    new = nn.Parameter(data, old.requires_grad)
    # A gradient of the old shape would refer to the old tensor and forbid the exchange.
    old.grad = None
    try:
        _exchange(old, new)
    except RuntimeError as error:
        old.grad = grad
        raise SurgeryError(
            f"parameter '{name}' cannot be cut in place: something else holds on to it "
            f"({str(error).splitlines()[0]}). Let go of losses, outputs and of a DistributedDataParallel or "
            "Fabric wrapper before the cut, and wrap the network anew after it"
        ) from error
    return _Swap(old, new, grad)


def _exchange(old: nn.Parameter, new: nn.Parameter) -> None:
    """Swaps two parameters; what only unreachable objects hold on to is let go of first."""
    try:
        torch.utils.swap_tensors(old, new)
    except RuntimeError:
        # Tracing leaves cycles with weak references to the parameters.
        gc.collect()
        torch.utils.swap_tensors(old, new)


def _holders(model: nn.Module, buffer: Tensor) -> list[tuple[nn.Module, str]]:
    """Every place in the network that holds a buffer."""
    return [
        (module, leaf)
        for module in model.modules()
        for leaf, tensor in module._buffers.items()
        if tensor is buffer
    ]


def _cut_state(
    optimizer: Optimizer, cuts: Mapping[Tensor, Mapping[int, IntArray]]
) -> dict[Tensor, dict[str, Tensor]]:
    """The optimizer's state of cut parameters, cut like them; nothing is changed yet."""
    return {
        parameter: {
            key: cut_tensor(value, dims)
            for key, value in optimizer.state[parameter].items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }
        for parameter, dims in cuts.items()
        if parameter in optimizer.state
    }


def _move_optimizer(
    optimizer: Optimizer, model: nn.Module, small: nn.Module, kept: Mapping[str, Mapping[int, IntArray]]
) -> None:
    """Lets an optimizer train the smaller copy: its parameters change place, its state follows."""
    new = dict(small.named_parameters())
    pairs = [(name, old, new[name]) for name, old in model.named_parameters()]
    cut = _cut_state(optimizer, {old: kept[name] for name, old, _ in pairs if name in kept})
    replaced = {old: fresh for _, old, fresh in pairs}
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(parameter, parameter) for parameter in group["params"]]
    for _, old, fresh in pairs:
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            optimizer.state[fresh] = {**state, **cut.get(old, {})}
