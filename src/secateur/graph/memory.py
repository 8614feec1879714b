"""Fresh memory for large tensors.

Half a gigabyte of fresh memory in pages of four kilobytes costs more time than what is written to it: the
system hands every page out by itself. In huge pages it costs a fraction of that.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

_LARGE = 8 << 20  # bytes; below it nothing is to be gained


def fresh(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor, in huge pages where it is large and the system has them.

    Args:
        shape: of the tensor.
        like: gives type and device.

    Returns:
        A contiguous tensor that shares no memory with any other.

    Example:
        >>> fresh((2, 3), torch.zeros(1, dtype=torch.int64)).dtype
        torch.int64
    """
    tensor = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    if tensor.device.type == "cpu" and tensor.nbytes >= _LARGE:
        _ask_for_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def clone(tensor: Tensor) -> Tensor:
    """A contiguous copy of a tensor that shares no memory with it."""
    return fresh(tensor.shape, tensor).copy_(tensor.detach())


def _ask_for_huge_pages(address: int, size: int) -> None:
    """Advises the system; where it declines, everything works as without."""
    advise = _madvise()
    if advise is None:
        return
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
    advise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)


@cache
def _madvise() -> Callable[..., int] | None:
    """The system's call, on the systems that know huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        return ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
