"""Cut tensors and copy modules: the mechanical part of surgery."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import SurgeryError
from secateur.graph.branches import Replacement
from secateur.graph.channel_graph import AttributeValue, ChannelGraph
from secateur.graph.cutting.attributes import attribute_of, separate, set_attribute
from secateur.graph.cutting.rebinding import PLAIN, rebind
from secateur.graph.cutting.ties import storage_ties, tied_again
from secateur.graph.groups import IntArray
from secateur.graph.substitutes import substitutes

_AT_ONCE = 1 << 20  # bytes that stay in the cache of a core

_OPAQUE = (nn.Module, Tensor, type, FunctionType, ModuleType)

Cuts = Mapping[tuple[str, int], IntArray]
"""Positions that stay, for every (tensor, dimension) that is cut."""


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Collect parameters and buffers by qualified name; a tied tensor by its first name only."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def cut_tensor(tensor: Tensor, kept: Mapping[int, IntArray]) -> Tensor:
    """Make a new tensor with only the kept positions of some dimensions.

    Args:
        tensor: the tensor to cut; not changed.
        kept: positions that stay, by dimension.

    Returns:
        A contiguous tensor that shares no memory with the old one; in the order of ``torch.channels_last`` if
        the old one is.

    Example:
        >>> import numpy as np
        >>> cut_tensor(torch.arange(6).view(2, 3), {1: np.array([0, 2])}).tolist()
        [[0, 2], [3, 5]]
    """
    return _cut(tensor.detach(), kept).contiguous(memory_format=_memory_format(tensor))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """Find the order in which the numbers of a tensor lie in memory, of those that have a name."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def _cut(source: Tensor, kept: Mapping[int, IntArray]) -> Tensor:
    """Make a contiguous tensor with only the kept positions of some dimensions."""
    if not kept:
        return source.clone(memory_format=torch.contiguous_format)
    # The dimension that loses most goes first: everything after it has less to copy.
    dims = sorted(kept, key=lambda dim: len(kept[dim]) / max(1, source.shape[dim]))
    selections = {dim: _selection(kept[dim], source.shape[dim], source.device) for dim in dims}
    shape = [len(kept.get(dim, range(size))) for dim, size in enumerate(source.shape)]
    result = torch.empty(shape, dtype=source.dtype, device=source.device)
    if len(dims) == 1:
        _select(source, dims[0], selections[dims[0]], result)
        return result
    # Some rows at a time, so that what is copied twice stays in the cache.
    rows = torch.as_tensor(kept.get(0, np.arange(source.shape[0])), device=source.device)
    *first, last = [dim for dim in dims if dim != 0]
    step = max(1, _AT_ONCE // max(1, source[:1].nbytes))
    for start in range(0, len(rows), step):
        piece = source.index_select(0, rows[start : start + step])
        for dim in first:
            piece = _select(piece, dim, selections[dim])
        _select(piece, last, selections[last], result[start : start + step])
    return result


_Selection = tuple[int, Tensor]
"""Length of the blocks that stay whole, and which of them stay."""


def _selection(kept: IntArray, size: int, device: torch.device) -> _Selection:
    block = _block(kept, size)
    return block, torch.as_tensor(kept[::block] // block, device=device)


def _select(tensor: Tensor, dim: int, selection: _Selection, out: Tensor | None = None) -> Tensor:
    """Select the blocks of one dimension that stay, in new memory or in a given tensor."""
    block, index = selection
    blocks = tensor.unflatten(dim, (tensor.shape[dim] // block, block))
    if out is None:
        selected: Tensor = blocks.index_select(dim, index).flatten(dim, dim + 1)
        return selected
    torch.index_select(blocks, dim, index, out=out.unflatten(dim, (len(index), block)))
    return out


def _block(kept: IntArray, size: int) -> int:
    """Find the largest block size that divides the start and the length of every run of positions.

    >>> _block(np.array([0, 1, 2, 6, 7, 8]), 9), _block(np.array([1, 2, 3]), 9)
    (3, 1)
    """
    if not len(kept):
        return 1
    starts = np.flatnonzero(np.diff(kept, prepend=-2) != 1)
    lengths = np.diff(starts, append=len(kept))
    if lengths.min() == 1:
        return 1
    return int(np.gcd.reduce([size, *kept[starts], *lengths]))


def by_tensor(cuts: Cuts) -> dict[str, dict[int, IntArray]]:
    """Sort cuts by tensor, so that each tensor is processed once."""
    sorted_cuts: dict[str, dict[int, IntArray]] = {}
    for (name, dim), kept in cuts.items():
        sorted_cuts.setdefault(name, {})[dim] = kept
    return sorted_cuts


def positions_left(before: ChannelGraph, after: ChannelGraph) -> Cuts:
    """Find the positions of each tensor dimension that stay between a graph and a later one that has it."""
    cuts: dict[tuple[str, int], IntArray] = {}
    for group, old, new in zip(before.wiring.groups, before.alive, after.alive, strict=True):
        if len(old) == len(new):
            continue
        for member in group.members:
            if member.tensor not in after.tensors:
                continue
            key = (member.tensor, member.dim)
            if key not in cuts:
                still = ~after.removed[before.span(*key)]
                cuts[key] = still[~before.removed[before.span(*key)]].nonzero()[0]
    return cuts


@torch.inference_mode(False)  # a tensor that is made in that mode could not be trained
def copy_with(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    attributes: Iterable[AttributeValue] = (),
    *,
    replacements: Iterable[Replacement] = (),
    gradient_hooks: bool = False,
) -> nn.Module:
    """Copy a module, with some tensors, integer attributes and modules replaced; the rest is cloned.

    Functions that the module holds (a ``forward`` as an attribute, hooks) and that refer to it are rebuilt so
    that they refer to the copy. Tensors that it holds besides parameters and buffers and that were computed
    with gradients are detached in the copy.

    Args:
        model: the module; not changed.
        tensors: new parameters and buffers by name. They are used as they are, not copied.
        attributes: integer attributes to set.
        replacements: modules to replace; these are not copied.
        gradient_hooks: carry the gradient hooks of parameters over.

    Returns:
        The copy. Parameters keep their class, attributes and ``requires_grad``, buffers their attributes.
        A tensor that is another one with permuted dimensions, on the same memory, is so in the copy.
        Parameters have no gradients.

    Raises:
        SurgeryError: the module or a gradient hook cannot be copied, or the module has no such attribute or
            module to replace.
    """
    held = named_tensors(model)
    ties = [tie for tie in storage_ties(held) if tie.order is not None]
    together = {name: held[name] for tie in ties for name in (tie.first, tie.second)}
    copies = {name: tensor.detach().clone() for name, tensor in together.items() if name not in tensors}
    tensors = tied_again(ties, {**tensors, **copies})
    memo: dict[int, Any] = substitutes(model, replacements)
    kept = {id(tensor) for tensor in _tensors_outside(model, memo)}
    originals = {name: tensor for name, tensor in named_tensors(model).items() if id(tensor) in kept}
    for name, old in originals.items():
        if name in tensors:
            memo[id(old)] = like(old, tensors[name])
        elif isinstance(old, nn.Parameter) and type(old).__deepcopy__ is nn.Parameter.__deepcopy__:
            data = old.detach().clone()
            memo[id(old)] = like(old, data)
        elif old.layout not in (torch.strided, torch.sparse_coo):  # deepcopy refuses compressed rows
            memo[id(old)] = old.detach().clone()
    for _, _, computed in computed_attributes(model, in_objects=True):
        memo.setdefault(id(computed), computed.detach().clone())
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:
        raise SurgeryError(
            f"{type(model).__name__} cannot be copied ({error}); cut it in place (inplace=True)"
        ) from error
    own = {id(module) for module in model.modules()}
    shared = next((path for path, module in result.named_modules() if id(module) in own), None)
    if shared is not None:
        raise SurgeryError(
            f"a copy of {type(model).__name__} shares '{shared}' with the original, whose __deepcopy__ does "
            "not copy; cut it in place (inplace=True)"
        )
    pairs = {name: (old, memo[id(old)]) for name, old in originals.items() if id(old) in memo}
    for old, new in pairs.values():
        copy_attributes(old, new, memo)
    if gradient_hooks:
        for name, (old, new) in pairs.items():
            _copy_gradient_hooks(name, old, new, memo)
    rebind(memo)
    set_attributes(result, attributes)
    renew_flat_weights(result)
    return result


def _tensors_outside(model: nn.Module, replaced: Collection[int]) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a network, except those of modules given by their id."""
    if id(model) not in replaced:
        for held in (model._parameters, model._buffers):
            yield from (tensor for tensor in held.values() if tensor is not None)
        for child in model.children():
            yield from _tensors_outside(child, replaced)


def like(old: Tensor, data: Tensor) -> Tensor:
    """Give a tensor the role of an old one: a parameter, of the same class, or a buffer."""
    if not isinstance(old, nn.Parameter):
        return data
    if type(data) is Tensor and issubclass(type(old), nn.Parameter):
        # A subclass may have a constructor with other arguments.
        made: Tensor = Tensor._make_subclass(type(old), data, old.requires_grad)
        return made
    return nn.Parameter(data, old.requires_grad)


def copy_attributes(old: Tensor, new: Tensor, memo: dict[int, Any] | None = None) -> None:
    """Give a tensor the attributes of another, as far as it has none of these names.

    Args:
        old: not changed.
        new: changed in place.
        memo: of a deep copy; values are then copied in the same way. What cannot be copied is shared.
    """
    slots = [name for cls in type(old).__mro__ for name in _slots(cls) if hasattr(old, name)]
    values = {name: getattr(old, name) for name in slots if not hasattr(new, name)}
    values |= {name: value for name, value in vars(old).items() if name not in vars(new)}
    for name, value in values.items():
        setattr(new, name, value if memo is None else _copied(value, memo))


def _slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if not name.startswith("__")]


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001 - such as a process group, which cannot exist twice
        return value


OF_GRADIENT = "_backward_hooks"
"""Where a tensor keeps the hooks that get its gradient, before it is added up."""

HOOKS = (OF_GRADIENT, "_post_accumulate_grad_hooks")
"""Where a tensor keeps its gradient hooks of all kinds, in the order in which they are called."""


def keep_gradient_hooks(tensor: Tensor) -> None:
    """Register the gradient hooks of a tensor again after its content has been exchanged."""
    for kind in HOOKS:
        hooks = getattr(tensor, kind)
        if hooks:
            setattr(tensor, kind, hooks)


def _copy_gradient_hooks(name: str, old: Tensor, new: Tensor, memo: dict[int, Any]) -> None:
    for kind in HOOKS:
        hooks = getattr(old, kind)
        if not hooks:
            continue
        try:
            setattr(new, kind, copy.deepcopy(hooks, memo))
        except Exception as error:
            raise SurgeryError(
                f"a gradient hook of '{name}' cannot be copied ({error}); remove it before the cut and "
                "register it on the smaller network, or cut in place (inplace=True)"
            ) from error


def computed_attributes(
    model: nn.Module, *, in_objects: bool
) -> list[tuple[dict[Any, Any] | list[Any], Any, Tensor]]:
    """Find the tensors that modules hold and that were computed with gradients: deepcopy refuses them.

    Such are the weights of ``torch.nn.utils.prune`` and ``torch.nn.utils.weight_norm``.

    Args:
        model: the network.
        in_objects: look into objects of other classes that modules hold, as deepcopy does.

    Returns:
        What holds each of them, under which key or index, and the tensor. Those in sets are left out.
    """
    found: list[tuple[dict[Any, Any] | list[Any], Any, Tensor]] = []
    seen: set[int] = set()
    pending: list[Any] = [vars(module) for module in model.modules()]
    while pending:
        holder = pending.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        if isinstance(holder, dict | list):
            for key, item in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
                if isinstance(item, Tensor):
                    if not item.is_leaf:
                        found.append((holder, key, item))
                elif type(item) not in PLAIN and not (isinstance(item, dict) and not item):
                    pending.append(item)
        elif isinstance(holder, tuple):
            pending.extend(holder)
        elif in_objects and not isinstance(holder, _OPAQUE) and hasattr(holder, "__dict__"):
            pending.append(vars(holder))
    return found


def renew_flat_weights(model: nn.Module) -> None:
    """Rebuild the lists of weights, and of weak references to them, that recurrent layers keep."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def forget_flat_weights(model: nn.Module) -> None:
    """Delete the weak references of recurrent layers to their weights, which prevent an exchange."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._flat_weight_refs = []


def set_attributes(model: nn.Module, attributes: Iterable[AttributeValue]) -> Callable[[], None]:
    """Set integer attributes of modules, and truth values: all of them, or none.

    Args:
        model: changed in place.
        attributes: integers, and items of lists or tuples. A list is replaced, not changed.

    Returns:
        A function that puts the former values back, the same objects.

    Raises:
        SurgeryError: a module has no such integer attribute, or it cannot be set; nothing is changed.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    values: dict[tuple[str, str], Any] = {}
    for item in attributes:
        key = (item.module, item.name)
        if item.module not in modules:
            raise SurgeryError(f"the network has no module '{item.module}'")
        current = values[key] if key in values else attribute_of(modules[item.module], item.name)
        values[key] = _changed(item, current)
    with ExitStack() as undo:
        for path, name in values:
            undo.callback(separate(model, modules[path], name))
        for (path, name), value in values.items():
            module = modules[path]
            before, own = attribute_of(module, name), "." in name or name in vars(module)
            try:
                set_attribute(module, name, value)
            except Exception as error:
                raise SurgeryError(
                    f"attribute '{name}' of module '{path}' cannot be set ({error})"
                ) from error
            if own or name not in vars(module):
                undo.callback(set_attribute, module, name, before)
            else:  # it was an attribute of the class
                undo.callback(delattr, module, name)
        return undo.pop_all().close


def _changed(item: AttributeValue, current: Any) -> Any:
    """Return the new value of an attribute."""
    if item.index is None:
        if type(current) is not type(item.value):
            kind = "truth value" if isinstance(item.value, bool) else "integer attribute"
            raise SurgeryError(f"module '{item.module}' has no {kind} '{item.name}'")
        return item.value
    if not isinstance(current, tuple | list) or not 0 <= item.index < len(current):
        raise SurgeryError(f"module '{item.module}' has no list attribute '{item.name}'")
    items = [*current[: item.index], item.value, *current[item.index + 1 :]]
    return current._make(items) if hasattr(current, "_make") else type(current)(items)
