"""Find tensors of a network that share memory, such as a weight that is another one transposed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from secateur.graph.groups import IntArray


@dataclass(frozen=True)
class Tie:
    """Two parameters or buffers, different objects, that share memory.

    Attributes:
        first: name of the one that comes first in the network.
        second: name of the other.
        order: the dimensions of the first in the order of the second, which is ``first.permute(order)``;
            ``None`` if only a part of the memory is shared, or it is read in another way.
    """

    first: str
    second: str
    order: tuple[int, ...] | None


def storage_ties(tensors: Mapping[str, Tensor]) -> tuple[Tie, ...]:
    """Find the pairs of tensors that have elements in common.

    Args:
        tensors: parameters and buffers by name, each once.

    Returns:
        The pairs, in the order of the tensors. One that is the permuted form of several others is paired with
        the first of them alone.

    Example:
        >>> weight = torch.nn.Parameter(torch.rand(2, 3))
        >>> storage_ties({"encoder": weight, "decoder": torch.nn.Parameter(weight.t())})
        (Tie(first='encoder', second='decoder', order=(1, 0)),)
    """
    by_storage: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.layout is torch.strided and tensor.numel() and not tensor.is_meta:
            by_storage[_address(tensor)].append(name)
    found: list[Tie] = []
    settled: set[str] = set()
    for address, names in by_storage.items():
        # Many tensors may be parts of one storage, such as a mapped file.
        ranges = {name: _range(tensors[name]) for name in names} if address and len(names) > 1 else {}
        for first, second in combinations(ranges, 2):
            (start, end), (start_of_other, end_of_other) = ranges[first], ranges[second]
            if end <= start_of_other or end_of_other <= start or not settled.isdisjoint((first, second)):
                continue
            if not _overlap(tensors[first], tensors[second]):
                continue
            order = _order(tensors[first], tensors[second])
            found.append(Tie(first, second, order))
            if order is not None:
                settled.add(second)
    return tuple(found)


def tied_again(ties: Iterable[Tie], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let tensors share memory as others did.

    Args:
        ties: of the others.
        tensors: some tensors by the same names.

    Returns:
        The tensors; where the second of a pair holds the numbers of the first, it is a view of it.
    """
    found = dict(tensors)
    for tie in ties:
        if tie.order is None or tie.first not in found or tie.second not in found:
            continue
        first, second = found[tie.first].detach(), found[tie.second].detach()
        permuted = first.permute(tie.order)
        if (
            permuted.shape == second.shape
            and permuted.dtype == second.dtype
            and torch.equal(permuted, second)
        ):
            # No view in the sense of autograd, which would keep the first one from being exchanged.
            found[tie.second] = first.new_empty(0).set_(
                first.untyped_storage(), first.storage_offset(), permuted.shape, permuted.stride()
            )
    return found


def _address(tensor: Tensor) -> int:
    """Return the address of a tensor's storage; zero if it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a subclass without a storage of its own
        return 0


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors whose ranges of one storage overlap have elements in common."""
    if one.is_contiguous() and other.is_contiguous():
        return True
    return bool(np.isin(_places(one), _places(other)).any())


def _range(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one after its last."""
    size = tensor.element_size()
    steps = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * size
    return start, start + (int(steps) + 1) * size


def _places(tensor: Tensor) -> IntArray:
    """List the first bytes of a tensor's elements in its storage."""
    places = np.full((1,) * tensor.dim(), tensor.storage_offset(), dtype=np.int64)
    for dim, (length, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        shape = [1] * tensor.dim()
        shape[dim] = length
        places = places + (np.arange(length) * step).reshape(shape)
    return places.ravel() * tensor.element_size()


def _order(first: Tensor, second: Tensor) -> tuple[int, ...] | None:
    """Find the order of the first tensor's dimensions in the second; ``None`` if it is no permutation."""
    same = first.storage_offset() == second.storage_offset() and first.dtype == second.dtype
    if not same or first.dim() != second.dim():
        return None
    left = list(range(first.dim()))
    order = []
    for length, step in zip(second.shape, second.stride(), strict=True):
        found = [
            dim for dim in left if first.shape[dim] == length and (length == 1 or first.stride(dim) == step)
        ]
        if not found:
            return None
        order.append(found[0])
        left.remove(found[0])
    return tuple(order)
