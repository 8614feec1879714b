"""Batches in a reproducible order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from secateur.data.augment import DRAWS, middle, vary
from secateur.data.mixup import blend, kept_shares
from secateur.data.pictures import OnDisk, Pictures, fetch, make_pool
from secateur.data.settings import Augmentation
from secateur.models import InputSpec
from secateur.ranks import Share

Batch = tuple[Tensor, Tensor]
Part = tuple[list[int], list[int]]
"""Pictures by their numbers, and those with which they are blended."""


@dataclass
class Loader:
    """Goes through a split in batches, as often as it is iterated.

    Every pass has a number, from which follow its order and its augmentation: the same seed and number give
    the same batches, bit for bit. To go on in the middle of a training, set ``epoch``.

    Attributes:
        pictures: of the split.
        targets: class indices, int64, shape (N,).
        input: size and normalisation of what is handed out.
        batch_size: pictures in a batch.
        seed: of all randomness.
        shuffle: whether each pass has an order of its own.
        augmentation: how pictures are varied; ``None`` shows the middle of each.
        mixup: how pictures are blended with others of their batch, as in :class:`DataSettings`.
        drop_last: whether a last batch that is not full is left out (unless it is the only one).
        epoch: number of the next pass; counts itself up.
    """

    pictures: Pictures = field(repr=False)
    targets: Tensor = field(repr=False)
    input: InputSpec
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    augmentation: Augmentation | None = None
    mixup: float = 0.0
    drop_last: bool = False
    epoch: int = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self.targets), self.batch_size)
        return full if self.drop_last and full else full + bool(rest)

    def __iter__(self) -> Iterator[Batch]:
        """Batches: pictures, float32, shape (B, C, H, W), normalised; targets, int64, shape (B,).

        With mixup, targets are shares of the classes, float32, shape (B, classes).
        """
        for share in self.shares(0, 1):
            yield share.batch

    def shares(self, index: int, count: int) -> Iterator[Share]:
        """Of each batch of a pass, the part of one of several processes; no other picture is read.

        What is in a batch, and how it is varied, does not depend on the number of processes.

        Args:
            index: of the process.
            count: number of processes.
        """
        order, draws, blends = self._pass(self.epoch)
        self.epoch += 1
        chunks = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        chunks = chunks[: len(self)]
        mine = [_part(chunk, index, count) for chunk in chunks]
        with make_pool() as readers, ThreadPoolExecutor(1) as ahead:
            read = partial(self._batch, draws=draws, blends=blends, readers=readers)
            for chunk, batch in zip(chunks, self._batches(mine, read, ahead), strict=True):
                yield Share(batch, len(chunk[index::count]), len(chunk))

    def _pass(self, epoch: int) -> tuple[list[int], Tensor, Tensor]:
        """Order of the pictures, uniform numbers for each, shape (N, 5), and the share that each keeps."""
        mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
        count = len(self.targets)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        draws = torch.rand(count, DRAWS, generator=generator)
        return order.tolist(), draws, kept_shares(self.mixup, count, int(mixed))

    def _batches(
        self, parts: list[Part], read: Callable[[Part], Batch], ahead: ThreadPoolExecutor
    ) -> Iterator[Batch]:
        if not isinstance(self.pictures, OnDisk):
            yield from map(read, parts)
            return
        # The next batch is decoded while the network works on this one.
        following: Future[Batch] | None = None
        for part in parts:
            current, following = following, ahead.submit(read, part)
            if current is not None:
                yield current.result()
        if following is not None:
            yield following.result()

    def _batch(self, part: Part, draws: Tensor, blends: Tensor, readers: ThreadPoolExecutor) -> Batch:
        chunk, partners = part
        inputs, targets = self._shown(chunk, draws, readers), self.targets[chunk]
        if not self.mixup:
            return inputs, targets
        places = {number: place for place, number in enumerate(chunk)}
        if places.keys() >= set(partners):
            others = inputs[[places[number] for number in partners]]
        else:
            others = self._shown(partners, draws, readers)
        return blend((inputs, targets), (others, self.targets[partners]), blends[chunk], self.classes)

    @cached_property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.targets.max()) + 1

    def _shown(self, chunk: Sequence[int], draws: Tensor, readers: ThreadPoolExecutor) -> Tensor:
        """Some pictures as the network expects them, varied."""
        height, width = self.input.size[1:]
        pictures = fetch(self.pictures, chunk, readers)
        if self.augmentation is None:
            shown = [middle(picture, (height, width)) for picture in pictures]
        else:
            how = self.augmentation
            rows = draws[list(chunk)]
            shown = [vary(*pair, how, (height, width)) for pair in zip(pictures, rows, strict=True)]
        return normalized(torch.stack(shown), self.input)


def _part(chunk: list[int], index: int, count: int) -> Part:
    """Of a batch, what one of several processes shows; each picture is blended with the one before it."""
    places = range(len(chunk))[index::count] or range(1)
    return [chunk[place] for place in places], [chunk[place - 1] for place in places]


def normalized(pictures: Tensor, spec: InputSpec) -> Tensor:
    """Pictures as a network expects them.

    Args:
        pictures: uint8, shape (B, C, H, W).
        spec: mean and deviation, of values in [0, 1].

    Returns:
        float32 of the same shape.

    >>> normalized(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), InputSpec((1, 1, 1), (0.5,), (0.25,)))
    tensor([[[[2.]]]])
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) * 255 for values in (spec.mean, spec.std))
    return pictures.float().sub_(mean).div_(std)
