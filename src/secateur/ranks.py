"""Ranks: the processes that share one run, what they tell each other, and which examples each works on.

Every method that has the processes tell each other something must be called by all of them, in the same
order. Nothing is pickled: what goes over the wire are numbers and JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from secateur._compat import tree_flatten, tree_leaves, tree_unflatten
from secateur.errors import UsageError


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, or this one alone.

    Attributes:
        together: whether the processes take part; then every one of them has to.

    >>> alone = Ranks()
    >>> alone.sum(torch.tensor([1.0])), alone.same({"a": 1}), alone.gather("b"), alone.first
    (tensor([1.]), {'a': 1}, ['b'], True)
    """

    together: bool = False

    def __post_init__(self) -> None:
        if self.together and not (dist.is_available() and dist.is_initialized()):
            raise UsageError("there are no other processes to work with; leave across_ranks out")

    @property
    def count(self) -> int:
        """Number of processes."""
        return dist.get_world_size() if self.together else 1

    @property
    def index(self) -> int:
        """Number of this process, from 0."""
        return dist.get_rank() if self.together else 0

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, writes and talks."""
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, the same bits in all; the tensor itself is not changed."""
        if not self.together:
            return tensor
        total = tensor.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    def most(self, number: int) -> int:
        """The largest of the numbers that the processes have."""
        if not self.together:
            return number
        found = torch.tensor([number], dtype=torch.int64, device=_place())
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def stack(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, behind each other in a new first dimension."""
        if not self.together:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def concatenate(self, tensor: Tensor) -> Tensor:
        """The rows of a CPU tensor from all processes, in the order of their ranks; some may have none."""
        if not self.together:
            return tensor
        values = tensor.detach().contiguous()
        heads = self.gather({"dtype": str(values.dtype).removeprefix("torch."), "shape": [*values.shape]})
        # A NumPy view, since frombuffer refuses what is empty.
        bodies = self._exchange(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        parts = [
            torch.frombuffer(bytearray(body), dtype=getattr(torch, head["dtype"])).reshape(head["shape"])
            for head, body in zip(heads, bodies, strict=True)
            if body
        ]
        return torch.cat(parts) if parts else tensor

    def same(self, value: Any) -> Any:
        """What the first process has, in all of them.

        Args:
            value: plain values, as JSON has them; those of other processes are not looked at.
        """
        if not self.together:
            return value
        text = json.dumps(value).encode() if self.first else b""
        size = torch.tensor([len(text)], dtype=torch.int64, device=_place())
        dist.broadcast(size, 0)
        sent = torch.zeros(int(size), dtype=torch.uint8)
        if self.first:
            sent = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        sent = sent.to(_place())
        dist.broadcast(sent, 0)
        return json.loads(sent.cpu().numpy().tobytes())

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks.

        Args:
            value: plain values, as JSON has them.
        """
        if not self.together:
            return [value]
        return [json.loads(text) for text in self._exchange(json.dumps(value).encode())]

    def wait(self) -> None:
        """Goes on when all processes have come here."""
        self.most(0)

    def _exchange(self, text: bytes) -> list[bytes]:
        """What each process says, of any length."""
        sizes = self.stack(torch.tensor([len(text)], device=_place())).flatten().tolist()
        padded = torch.zeros(max(1, *sizes), dtype=torch.uint8)
        if text:
            padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        rows = self.stack(padded.to(_place())).cpu().numpy()
        return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


ALONE = Ranks()
"""A process that works by itself."""


def _place() -> torch.device:
    """Where tensors have to lie to be sent: the CPU, unless the processes only talk between GPUs."""
    return torch.device("cpu" if "cpu:" in dist.get_backend_config() else "cuda")


@dataclass(frozen=True)
class Share:
    """The part of a batch that one process works on.

    Attributes:
        batch: as the whole batch is, with every tensor cut down to these examples. Where there are fewer
            examples than processes, some get one that is not theirs, and does not count.
        examples: how many count here.
        of: how many the whole batch has.
    """

    batch: Any
    examples: int
    of: int

    @property
    def weight(self) -> float:
        """Its part of a mean over the whole batch."""
        return self.examples / max(1, self.of)


@runtime_checkable
class Shareable(Protocol):
    """Batches that can hand out the part of one process without making the whole."""

    def shares(self, index: int, count: int) -> Iterator[Share]:
        """Of each batch, the part of process ``index`` of ``count``."""
        ...


def shares(batches: Iterable[Any], ranks: Ranks) -> Iterator[Share]:
    """The part of this process of every batch.

    All processes go through the same batches, so the order of the examples, and what is in a batch, do not
    depend on how many they are; and each gets a part of every batch.

    Args:
        batches: whole batches, of any tensors with the examples first.
        ranks: who shares them. All processes have to be given the same batches: the first is compared.

    Raises:
        UsageError: the processes were given other batches.

    >>> [share] = shares([(torch.ones(3, 2), torch.zeros(3))], Ranks())
    >>> share.examples, share.of, share.weight
    (3, 3, 1.0)
    """
    if isinstance(batches, Shareable):
        yield from batches.shares(ranks.index, ranks.count)
        return
    if not ranks.together:
        for batch in batches:
            yield share_of(batch, ranks.index, ranks.count)
        return
    source = iter(batches)
    first, second = next(source, _END), next(source, _END)
    _check_same(first, ranks)
    fixed = _unbatched(first, second)
    for batch in chain((first, second), source):
        if batch is not _END:
            yield share_of(batch, ranks.index, ranks.count, fixed)


_END = object()


def _check_same(batch: Any, ranks: Ranks) -> None:
    """Makes sure that all processes begin with the same batch.

    Raises:
        UsageError: they do not, so that a part of every batch of each would count and the rest be left out.
    """
    found = ranks.gather(_fingerprint(batch))
    other = next((rank for rank, print_ in enumerate(found) if print_ != found[0]), None)
    if other is not None:
        raise UsageError(
            f"processes 0 and {other} were given other batches: every process has to go through the same "
            "whole batches, of which it works on its part. Shuffle with a common seed "
            "(DataLoader(..., generator=torch.Generator().manual_seed(0))), and leave DistributedSampler out"
        )


def _fingerprint(batch: Any) -> str:
    """A hash of the whole numbers in a batch (its targets), or of all tensors where there are none.

    Pictures may be changed at random and be the same examples all the same; targets are not.
    """
    tensors = [leaf.detach() for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    whole = [tensor for tensor in tensors if not (tensor.is_floating_point() or tensor.is_complex())]
    digest = hashlib.sha256()
    for tensor in whole or tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if batch is not _END else "none"


def _unbatched(first: Any, second: Any) -> frozenset[int]:
    """Which leaves are one and the same tensor in each batch, such as weights of classes."""
    one, other = tree_leaves(first), tree_leaves(second)
    if len(one) != len(other):
        return frozenset()
    same = {
        number
        for number, (a, b) in enumerate(zip(one, other, strict=True))
        if isinstance(a, Tensor) and isinstance(b, Tensor) and _is_same(a, b)
    }
    tensors = [number for number, leaf in enumerate(one) if isinstance(leaf, Tensor) and leaf.ndim]
    # Where the examples themselves are the same, one batch is handed out again and again.
    return frozenset() if not tensors or tensors[0] in same else frozenset(same)


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.data_ptr() == b.data_ptr() and a.numel() > 0)


def share_of(batch: Any, index: int, count: int, fixed: Collection[int] = ()) -> Share:
    """Every ``count``-th example of a batch from ``index`` on.

    Args:
        batch: tensors in any nest of tuples, lists and dictionaries, examples first. A tensor with as many
            rows as the first one has is taken for one of the batch.
        index: of the process.
        count: number of processes.
        fixed: numbers of the leaves that are whole for every process, however many rows they have.

    >>> [share_of(torch.arange(5), index, 2).batch.tolist() for index in range(2)]
    [[0, 2, 4], [1, 3]]
    >>> share_of(torch.arange(1), 1, 2)
    Share(batch=tensor([0]), examples=0, of=1)
    """
    leaves, form = tree_flatten(batch)
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    of = sizes[0] if sizes else 1
    if count == 1:
        return Share(batch, of, of)
    examples = max(0, math.ceil((of - index) / count))
    rows = slice(index, None, count) if examples else slice(0, 1)
    cut = [
        leaf[rows]
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == of and number not in fixed
        else leaf
        for number, leaf in enumerate(leaves)
    ]
    return Share(tree_unflatten(cut, form), examples, of)
