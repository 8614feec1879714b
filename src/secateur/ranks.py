"""Share one run between processes: collectives, and the examples of each process.

All processes must call a collective, in the same order. Values are pickled between processes of one run,
which trust each other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from secateur._compat import tree_flatten, tree_leaves, tree_unflatten
from secateur.batches import plain
from secateur.errors import UsageError

Value = TypeVar("Value")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """Communicate between the processes of a run, or with this process alone.

    Attributes:
        is_distributed: whether there are other processes; then all of them must call each collective.

    >>> alone = Ranks()
    >>> alone.all_reduce_sum(torch.tensor([1.0])), alone.broadcast({"a": 1}), alone.all_gather("b")
    (tensor([1.]), {'a': 1}, ['b'])
    """

    is_distributed: bool = False

    def __post_init__(self) -> None:
        if self.is_distributed and not (dist.is_available() and dist.is_initialized()):
            raise UsageError("there are no other processes; leave across_ranks out")

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return dist.get_world_size() if self.is_distributed else 1

    @property
    def rank(self) -> int:
        """Return the number of this process, from 0."""
        return dist.get_rank() if self.is_distributed else 0

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that decides, writes and reports."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor over the processes; all get the same bits. The tensor itself is not changed."""
        if not self.is_distributed:
            return tensor
        total = tensor.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        if not self.is_distributed:
            return number
        # Tensors are sent from the CPU, unless the processes are only connected by their GPUs.
        place = "cpu" if "cpu:" in dist.get_backend_config() else "cuda"
        found = torch.tensor([number], dtype=torch.int64, device=place)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def broadcast(self, value: Value) -> Value:
        """Return the main process's value in all processes."""
        if not self.is_distributed:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def all_gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in the order of their ranks."""
        if not self.is_distributed:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def share_out(
        self, items: Sequence[Item], measure: Callable[[Item], Value]
    ) -> Iterator[tuple[Sequence[Item], list[Value]]]:
        """Measure items in turns, in which each process has at most one.

        Args:
            items: the same in all processes.
            measure: returns a value that can be pickled.

        Yields:
            The items of each turn and what was measured, in all processes.

        >>> list(Ranks().share_out("ab", str.upper))
        [('a', ['A']), ('b', ['B'])]
        """
        for at in range(0, len(items), self.world_size):
            turn = items[at : at + self.world_size]
            mine = [measure(item) for item in turn[self.rank : self.rank + 1]]
            yield turn, list(chain.from_iterable(self.all_gather(mine)))

    def all_gather_rows(self, tensor: Tensor) -> Tensor:
        """Concatenate the rows of a CPU tensor from all processes, by rank; some may have none."""
        if not self.is_distributed:
            return tensor
        # As arrays: tensors would be pickled as handles of shared memory.
        parts = [torch.from_numpy(part) for part in self.all_gather(tensor.detach().numpy()) if part.size]
        return torch.cat(parts) if parts else tensor

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        self.all_reduce_max(0)


ALONE = Ranks()
"""The only process of a run."""


@dataclass(frozen=True)
class RankBatch:
    """The part of a batch that one process works on.

    Attributes:
        batch: like the whole batch, with every tensor reduced to these examples. If there are fewer
            examples than processes, some processes get an example of another process, which is not counted.
        examples: number of examples that are counted here.
        total: number of examples in the whole batch.
    """

    batch: Any
    examples: int
    total: int

    @property
    def weight(self) -> float:
        """Return the weight of these examples in a mean over the whole batch."""
        return self.examples / max(1, self.total)


@runtime_checkable
class Splittable(Protocol):
    """Batches that can return the part of one process without making whole batches."""

    def split(self, rank: int, world_size: int) -> Iterator[RankBatch]:
        """Return the part of each batch that belongs to one process."""
        ...


def split_across_ranks(batches: Iterable[Any], ranks: Ranks) -> Iterator[RankBatch]:
    """Return the part of every batch that belongs to this process.

    All processes go through the same batches, so the order of the examples, and the examples of each batch,
    do not depend on the number of processes.

    Args:
        batches: whole batches, of any tensors with the examples first.
        ranks: the processes. All of them must receive the same batches; the first batch is compared.

    Raises:
        UsageError: the processes received different batches.

    >>> [part] = split_across_ranks([(torch.ones(3, 2), torch.zeros(3))], Ranks())
    >>> part.examples, part.total, part.weight
    (3, 3, 1.0)
    """
    if isinstance(batches, Splittable):
        yield from batches.split(ranks.rank, ranks.world_size)
        return
    if not ranks.is_distributed:
        for batch in batches:
            yield rank_batch(batch, ranks.rank, ranks.world_size)
        return
    source = iter(batches)
    first, second = next(source, _END), next(source, _END)
    _check_same(first, ranks)
    fixed = _unbatched(first, second)
    for batch in chain((first, second), source):
        if batch is not _END:
            yield rank_batch(batch, ranks.rank, ranks.world_size, fixed)


_END = object()


def _check_same(batch: Any, ranks: Ranks) -> None:
    """Check that all processes begin with the same batch.

    Raises:
        UsageError: they do not; then only a part of every batch would be used.
    """
    found = ranks.all_gather(_fingerprint(batch))
    other = next((rank for rank, fingerprint in enumerate(found) if fingerprint != found[0]), None)
    if other is not None:
        raise UsageError(
            f"processes 0 and {other} received different batches: every process must iterate over the same "
            "whole batches, of which it works on its part. Shuffle with a common seed "
            "(DataLoader(..., generator=torch.Generator().manual_seed(0))), and leave DistributedSampler out"
        )


def _fingerprint(batch: Any) -> str:
    """Hash the integers in a batch (its targets), or all tensors if there are none.

    Augmentation may change the images at random; the targets stay the same.
    """
    tensors = [leaf.detach() for leaf in tree_leaves(plain(batch)) if isinstance(leaf, Tensor)]
    whole = [tensor for tensor in tensors if not (tensor.is_floating_point() or tensor.is_complex())]
    digest = hashlib.sha256()
    for tensor in whole or tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if batch is not _END else "none"


def _unbatched(first: Any, second: Any) -> frozenset[int]:
    """Find the leaves that are the same tensor in each batch, such as weights of classes."""
    one, other = tree_leaves(plain(first)), tree_leaves(plain(second))
    if len(one) != len(other):
        return frozenset()
    same = {
        number
        for number, (a, b) in enumerate(zip(one, other, strict=True))
        if isinstance(a, Tensor) and isinstance(b, Tensor) and _is_same(a, b)
    }
    tensors = [number for number, leaf in enumerate(one) if isinstance(leaf, Tensor) and leaf.ndim]
    # If the examples themselves are the same, one batch is returned several times.
    return frozenset() if not tensors or tensors[0] in same else frozenset(same)


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.data_ptr() == b.data_ptr() and a.numel() > 0)


def rank_batch(batch: Any, rank: int, world_size: int, fixed: Collection[int] = ()) -> RankBatch:
    """Take every ``world_size``-th example of a batch, from number ``rank`` on.

    Args:
        batch: tensors in any nest of tuples, lists and mappings, examples first. A tensor with as many
            rows as the first one is taken for one of the batch.
        rank: of the process.
        world_size: number of processes.
        fixed: numbers of the leaves that every process gets completely, whatever their size.

    >>> [rank_batch(torch.arange(5), rank, 2).batch.tolist() for rank in range(2)]
    [[0, 2, 4], [1, 3]]
    >>> rank_batch(torch.arange(1), 1, 2)
    RankBatch(batch=tensor([0]), examples=0, total=1)
    """
    batch = plain(batch)
    leaves, form = tree_flatten(batch)
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    total = sizes[0] if sizes else 1
    if world_size == 1:
        return RankBatch(batch, total, total)
    examples = max(0, math.ceil((total - rank) / world_size))
    rows = slice(rank, None, world_size) if examples else slice(0, 1)
    cut = [
        leaf[rows]
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == total and number not in fixed
        else leaf
        for number, leaf in enumerate(leaves)
    ]
    return RankBatch(tree_unflatten(cut, form), examples, total)
