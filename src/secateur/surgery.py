"""Apply a plan to a module, and to the optimizer that trains it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

from secateur.arguments import check_arguments
from secateur.errors import SurgeryError
from secateur.formats import first_line
from secateur.graph.capture.program import drop_kept
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.cutting.fit import misfit
from secateur.graph.cutting.rescale import rescaled
from secateur.graph.cutting.tensors import (
    by_tensor,
    computed_attributes,
    copy_attributes,
    copy_with,
    cut_tensor,
    forget_flat_weights,
    keep_gradient_hooks,
    like,
    named_tensors,
    renew_flat_weights,
    set_attributes,
)
from secateur.graph.cutting.ties import storage_ties, tied_again
from secateur.graph.groups import IntArray
from secateur.graph.substitutes import replace_modules
from secateur.optimizer_state import CutState, check_optimizer, cut_state

if TYPE_CHECKING:
    from secateur.plan import PruningPlan


def apply_plan(
    model: nn.Module, plan: PruningPlan, *, optimizer: Optimizer | None = None, inplace: bool = False
) -> nn.Module:
    """Remove the channels and residual branches of a plan from a network; each tensor is cut once.

    The modules that a removed branch loses are replaced by modules that return their input or zeros
    (:mod:`secateur.graph.substitutes`); their parameters, buffers and hooks go.

    Parameters keep their class, their attributes (``parameter.no_weight_decay``), their ``requires_grad``
    and their gradient hooks, which are called with gradients of the new shape; tied parameters stay tied,
    also those that are a transposed form of another one on the same memory.
    Buffers keep their attributes. A copy has no gradients; in place, those of cut parameters are cleared.

    Args:
        model: the network that the plan was made for.
        plan: the channels and residual branches that stay.
        optimizer: an optimizer over parameters of the network, or some of them. Its state is cut too
            (momentum, Adam moments, row and column statistics, anything whose shape follows from the
            parameter's), so training continues with the same object. Other state of cut parameters starts
            again, with a warning; parameters of removed branches leave the optimizer. Unless ``inplace``, the
            optimizer is moved over to the parameters of the returned network.
        inplace: cut the network itself, keeping the identity of its parameters, instead of a copy. Tensors
            that modules store and that were computed with gradients, such as the weights of
            ``torch.nn.utils.prune``, are detached.

    Returns:
        The smaller network: a copy, or the network itself if ``inplace``.

    Raises:
        SurgeryError: the plan does not fit the network, a parameter is referenced by an object
            that cannot be updated (a DistributedDataParallel wrapper), or the network or a gradient hook
            cannot be copied. Then the network and the optimizer are not changed.
        UsageError: the optimizer contains no parameter of the network, or an argument is of another kind;
            nothing was changed.

    Example:
        >>> import torch
        >>> from secateur.graph.tracing import trace
        >>> from secateur.plan import plan_from
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> graph = trace(net, torch.randn(1, 4))
        >>> small = apply_plan(net, plan_from(graph, {"0": [1, 5]}))
        >>> small[0].out_features, small[2].weight.shape, net[0].out_features
        (6, torch.Size([2, 6]), 8)
    """
    return operate(model, plan, optimizer=optimizer, inplace=inplace).model


@dataclass(frozen=True)
class Operation:
    """A plan that has been applied and can be undone.

    It keeps the replaced tensors in memory; delete it when the cut is final.

    Attributes:
        model: the smaller network.
        undo: restores the network and the optimizer bit for bit, with the identity of their parameters,
            gradients, hooks, buffers, attributes and optimizer state. Call it once, before either changes.
            Only results of an earlier forward pass that modules store may stay detached.
    """

    model: nn.Module
    undo: Callable[[], None]


@torch.inference_mode(False)  # a tensor that is made in that mode could not be trained
def operate(
    model: nn.Module, plan: PruningPlan, *, optimizer: Optimizer | None = None, inplace: bool = False
) -> Operation:
    """Apply a plan like :func:`apply_plan`, so that it can be undone.

    Args:
        model: the network that the plan was made for.
        plan: the channels and residual branches that stay.
        optimizer: an optimizer over parameters of the network.
        inplace: cut the network itself, not a copy.

    Returns:
        The smaller network, and a function that undoes the cut.

    Raises:
        SurgeryError: as for :func:`apply_plan`.
        UsageError: as for :func:`apply_plan`.

    Example:
        >>> import torch
        >>> from secateur.graph.tracing import trace
        >>> from secateur.plan import plan_from
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = plan_from(trace(net, torch.randn(1, 4)), {"0": [1, 5]})
        >>> operation = operate(net, plan, inplace=True)
        >>> net[0].out_features
        6
        >>> operation.undo()
        >>> net[0].out_features
        8
    """
    refuse_wrapped(model)
    check_arguments(plan=plan)
    tensors = named_tensors(model)
    _check_fit(model, plan)
    check_optimizer(optimizer, model)
    kept = by_tensor(plan.kept_slots)
    removed = plan.removed_tensors & tensors.keys()
    state = CutState() if optimizer is None else cut_state(optimizer, tensors, kept, removed)
    state.warn()
    lengths = rescaled(plan.graph.wiring.rescales, tensors, kept)
    with ExitStack() as undo:
        small = model
        moved: dict[Tensor, Tensor] = {}
        if inplace:
            _cut_in_place(model, plan, kept, lengths, undo)
        else:
            cut = {name: cut_tensor(tensors[name], dims) for name, dims in kept.items()}
            small = copy_with(
                model, cut | lengths, plan.attributes, replacements=plan.replacements, gradient_hooks=True
            )
            new = dict(small.named_parameters())
            moved = {old: new[name] for name, old in model.named_parameters() if name not in removed}
        if optimizer is not None:
            undo.callback(state.install(optimizer, moved))
        drop_kept(small)
        return Operation(small, undo.pop_all().close)


def _check_fit(model: nn.Module, plan: PruningPlan) -> None:
    """Refuse a network whose tensors are not those of the plan's graph."""
    wrong = misfit(model, plan.graph.tensors)
    if wrong is not None:
        raise SurgeryError(
            f"the plan does not fit {type(model).__name__}: {wrong}; it was made for another network, or has "
            "been applied already"
        )


def _cut_in_place(
    model: nn.Module,
    plan: PruningPlan,
    kept: Mapping[str, Mapping[int, IntArray]],
    lengths: Mapping[str, Tensor],
    undo: ExitStack,
) -> None:
    """Exchange every cut tensor, and record how to undo that."""
    undo.callback(replace_modules(model, plan.replacements))
    undo.callback(set_attributes(model, plan.attributes))
    undo.callback(renew_flat_weights, model)
    forget_flat_weights(model)
    _detach_computed(model, undo)
    tensors = named_tensors(model)
    cut = {name: cut_tensor(tensors[name], dims) for name, dims in kept.items()} | dict(lengths)
    for name, data in tied_again(storage_ties(tensors), cut).items():
        old = tensors[name]
        new = like(old, data)
        if isinstance(old, nn.Parameter):
            _swap_parameter(name, old, new, undo)
        else:
            _swap_buffer(model, old, new, undo)
    renew_flat_weights(model)
    undo.callback(forget_flat_weights, model)
    undo.callback(_detach_computed, model, ExitStack())  # results that the smaller network has stored


def _detach_computed(model: nn.Module, undo: ExitStack) -> None:
    """Detach stored results of an earlier forward pass: their graph references the parameters."""
    detached: dict[int, Tensor] = {}
    for holder, key, tensor in computed_attributes(model, in_objects=False):
        holder[key] = detached.setdefault(id(tensor), tensor.detach())
        undo.callback(_restore, holder, key, weakref.ref(tensor))


def _restore(holder: Any, key: Any, tensor: weakref.ref[Tensor]) -> None:
    """Restore a tensor unless it was deleted; then the detached one, with the same values, remains."""
    found = tensor()
    if found is not None:
        holder[key] = found


def _swap_parameter(name: str, old: Tensor, new: Tensor, undo: ExitStack) -> None:
    undo.callback(setattr, old, "grad", old.grad)
    # A gradient of the old shape would refer to the old tensor and prevent the exchange.
    old.grad = None
    try:
        _exchange(old, new, undo)
    except RuntimeError as error:
        raise SurgeryError(
            f"parameter '{name}' cannot be cut in place: something else references it "
            f"({first_line(error)}). Delete losses, outputs and a DistributedDataParallel or "
            "Fabric wrapper before the cut, and wrap the network again after it"
        ) from error


def _swap_buffer(model: nn.Module, old: Tensor, new: Tensor, undo: ExitStack) -> None:
    """Exchange a buffer; if something references it, replace it everywhere in the network."""
    try:
        _exchange(old, new, undo)
    except RuntimeError:
        copy_attributes(old, new)
        for module in model.modules():
            for leaf, tensor in module._buffers.items():
                if tensor is old:
                    undo.callback(module._buffers.__setitem__, leaf, old)
                    module._buffers[leaf] = new


def _exchange(old: Tensor, new: Tensor, undo: ExitStack) -> None:
    """Give a tensor the content of another of its class; attributes and hooks stay with the tensor."""
    waiting = _hooks_of_accumulation(old)
    before = dict(waiting)
    try:
        _swap(old, new)
    finally:
        # A failed or undone exchange must not prevent the backward pass of an existing graph.
        undo.callback(_put_back, waiting, before)
    undo.callback(_swap_back, old, new)
    copy_attributes(new, old)
    keep_gradient_hooks(old)


def _swap(old: Tensor, new: Tensor) -> None:
    """Swap two tensors; references from unreachable objects are collected first."""
    try:
        torch.utils.swap_tensors(old, new)
    except RuntimeError:
        # Tracing leaves cycles with weak references to the parameters.
        gc.collect()
        torch.utils.swap_tensors(old, new)


def _swap_back(old: Tensor, new: Tensor) -> None:
    try:
        _swap(old, new)
    except RuntimeError:  # results of a forward pass on the smaller network still exist
        old.data = new.data


def _hooks_of_accumulation(tensor: Tensor) -> dict[int, Any]:
    """Return the hooks that run before a gradient is added; ``swap_tensors`` adds one that fails."""
    if not (tensor.is_leaf and tensor.requires_grad):
        return {}
    handle = get_gradient_edge(tensor).node.register_prehook(lambda _: None)
    hooks: dict[int, Any] | None = handle.hooks_dict_ref()  # None if no graph references the node
    handle.remove()
    return {} if hooks is None else hooks


def _put_back(hooks: dict[int, Any], before: dict[int, Any]) -> None:
    hooks.clear()
    hooks.update(before)
