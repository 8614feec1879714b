"""Cutting tensors and copying modules: the mechanical part of surgery."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import SurgeryError
from secateur.graph.attributes import attribute_of, set_attribute
from secateur.graph.channel_graph import AttributeValue, ChannelGraph
from secateur.graph.groups import IntArray
from secateur.graph.memory import clone, fresh

_AT_ONCE = 1 << 20  # bytes that stay in the cache of a core

Cuts = Mapping[tuple[str, int], IntArray]
"""Positions that stay, for every (tensor, dimension) that is cut."""


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by qualified name; a tied tensor by its first name only."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def cut_tensor(tensor: Tensor, kept: Mapping[int, IntArray]) -> Tensor:
    """A new tensor with only the kept positions of some dimensions.

    Args:
        tensor: the tensor to cut; not changed.
        kept: positions that stay, by dimension.

    Returns:
        A contiguous tensor that shares no memory with the old one.

    Example:
        >>> import numpy as np
        >>> cut_tensor(torch.arange(6).view(2, 3), {1: np.array([0, 2])}).tolist()
        [[0, 2], [3, 5]]
    """
    source = tensor.detach()
    if not kept:
        return clone(source)
    # The dimension that loses most goes first: everything after it has less to copy.
    dims = sorted(kept, key=lambda dim: len(kept[dim]) / max(1, tensor.shape[dim]))
    selections = {dim: _selection(kept[dim], tensor.shape[dim], source.device) for dim in dims}
    result = fresh([len(kept.get(dim, range(size))) for dim, size in enumerate(tensor.shape)], source)
    if len(dims) == 1:
        _select(source, dims[0], selections[dims[0]], result)
        return result
    # Some rows at a time, so that what is copied twice stays in the cache meanwhile.
    rows = torch.as_tensor(kept.get(0, np.arange(tensor.shape[0])), device=source.device)
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
    """The blocks of one dimension that stay, in new memory or in a given tensor."""
    block, index = selection
    blocks = tensor.unflatten(dim, (tensor.shape[dim] // block, block))
    if out is None:
        selected: Tensor = blocks.index_select(dim, index).flatten(dim, dim + 1)
        return selected
    torch.index_select(blocks, dim, index, out=out.unflatten(dim, (len(index), block)))
    return out


def _block(kept: IntArray, size: int) -> int:
    """The largest length of which every run of positions is a whole number, and lies on a grid of it.

    >>> _block(np.array([0, 1, 2, 6, 7, 8]), 9), _block(np.array([1, 2, 3]), 9)
    (3, 1)
    """
    if not len(kept):
        return 1
    starts = np.flatnonzero(np.diff(kept, prepend=-2) != 1)
    lengths = np.diff(starts, append=len(kept))
    return int(np.gcd.reduce([size, *kept[starts], *lengths]))


def by_tensor(cuts: Cuts) -> dict[str, dict[int, IntArray]]:
    """The cuts sorted by tensor, so that each tensor is handled once."""
    sorted_cuts: dict[str, dict[int, IntArray]] = {}
    for (name, dim), kept in cuts.items():
        sorted_cuts.setdefault(name, {})[dim] = kept
    return sorted_cuts


def positions_left(before: ChannelGraph, after: ChannelGraph) -> Cuts:
    """Positions that stay in each tensor dimension on the way from one graph to a later one."""
    cuts: dict[tuple[str, int], IntArray] = {}
    for group, old, new in zip(before.wiring.groups, before.alive, after.alive, strict=True):
        if len(old) == len(new):
            continue
        for member in group.members:
            key = (member.tensor, member.dim)
            if key not in cuts:
                still = ~after.removed[before.span(*key)]
                cuts[key] = still[~before.removed[before.span(*key)]].nonzero()[0]
    return cuts


def copy_with(
    model: nn.Module, tensors: Mapping[str, Tensor], attributes: Iterable[AttributeValue]
) -> nn.Module:
    """Copies a module with some tensors and integer attributes replaced; the rest is cloned.

    Args:
        model: the module; not changed.
        tensors: new parameters and buffers by name. They are used as they are, not copied.
        attributes: integer attributes to set.

    Returns:
        The copy. Parameters keep their ``requires_grad``.

    Raises:
        SurgeryError: the module cannot be copied, or has no such attribute.
    """
    memo: dict[int, object] = {}
    for name, old in named_tensors(model).items():
        if name in tensors:
            new = tensors[name]
            memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        elif type(old) is nn.Parameter and old.is_contiguous():
            memo[id(old)] = nn.Parameter(clone(old), old.requires_grad)
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:
        raise SurgeryError(
            f"{type(model).__name__} cannot be copied ({error}); cut it in place (inplace=True)"
        ) from error
    set_attributes(result, attributes)
    renew_flat_weights(result)
    return result


def renew_flat_weights(model: nn.Module) -> None:
    """Lets recurrent layers look their weights up anew: they keep a list of them, and weak references."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def forget_flat_weights(model: nn.Module) -> None:
    """Lets go of the weak references of recurrent layers to their weights, which forbid an exchange."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._flat_weight_refs = []


def set_attributes(model: nn.Module, attributes: Iterable[AttributeValue]) -> list[AttributeValue]:
    """Sets integer attributes of modules.

    Returns:
        The same attributes with the values that they had, to undo the change.

    Raises:
        SurgeryError: a module has no such integer attribute.
    """
    before = []
    for item in attributes:
        module = model.get_submodule(item.module)
        current = attribute_of(module, item.name)
        if item.index is None:
            if type(current) is not int:
                raise SurgeryError(f"module '{item.module}' has no integer attribute '{item.name}'")
            before.append(AttributeValue(item.module, item.name, None, current))
            set_attribute(module, item.name, item.value)
            continue
        if not isinstance(current, tuple | list) or not 0 <= item.index < len(current):
            raise SurgeryError(f"module '{item.module}' has no list attribute '{item.name}'")
        before.append(AttributeValue(item.module, item.name, item.index, current[item.index]))
        changed = [*current[: item.index], item.value, *current[item.index + 1 :]]
        set_attribute(module, item.name, type(current)(changed))
    return before
