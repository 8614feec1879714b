"""Load batches of images in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from secateur.data.augment import center, make_transform, mix, vary
from secateur.data.images import Images, OnDisk, fetch, make_pool
from secateur.data.settings import Augmentation
from secateur.models import InputSpec
from secateur.ranks import RankBatch

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Draws:
    """Store the random choices of one pass over the examples.

    Attributes:
        batches: numbers of the images of each batch.
        image_seeds: of the transforms, one for each image of the split.
        batch_seeds: of mixup, one for each batch.
    """

    batches: list[list[int]]
    image_seeds: list[int]
    batch_seeds: list[int]


class Passes:
    """Batches whose order may differ from pass to pass; the number of a pass determines it.

    Attributes:
        epoch: number of the next pass; each pass adds one.
    """

    epoch: int


@dataclass
class Loader(Passes):
    """Load a split in batches; it can be iterated several times.

    The seed and the number of a pass determine its order and augmentation: equal numbers give the
    same batches, bit for bit. To continue in the middle of a training, set ``epoch``.

    Attributes:
        images: of the split.
        targets: class indices, int64, shape (N,).
        input: size and normalisation of the images that are returned.
        batch_size: images in a batch.
        seed: of all randomness.
        shuffle: whether each pass has a different order.
        augmentation: how images are augmented; ``None`` takes the center of each.
        mixup: how images are blended with others of their batch, as in :class:`DataSettings`.
        drop_last: whether a last batch that is not full is left out (unless it is the only one).
        epoch: number of the next pass; each pass adds one.
    """

    images: Images = field(repr=False)
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
        """Return batches: images, float32, shape (B, C, H, W), normalised; targets, int64, shape (B,).

        With mixup, targets are weights of the classes, float32, shape (B, classes).
        """
        for part in self.split(0, 1):
            yield part.batch

    def split(self, rank: int, world_size: int) -> Iterator[RankBatch]:
        """Return, for each batch of a pass, the part of one of several processes; no other image is read.

        The examples of a batch, and their augmentation, do not depend on the number of processes.

        Args:
            rank: of the process.
            world_size: number of processes.
        """
        drawn = self._draw(self.epoch)
        self.epoch += 1
        # A process without an example takes the first one, which is not counted.
        places = [range(len(batch))[rank::world_size] or range(1) for batch in drawn.batches]
        # With mixup, each image is blended with the one before it in the batch.
        steps_back = (0, 1) if self.mixup else (0,)
        reads = [
            sorted({batch[at - back] for at in mine for back in steps_back})
            for batch, mine in zip(drawn.batches, places, strict=True)
        ]
        for number, images in enumerate(self._decoded(reads)):
            batch, mine = drawn.batches[number], places[number]
            shown = dict(zip(reads[number], self._shown(reads[number], images, drawn), strict=True))
            part = self._stack(shown, [batch[at] for at in mine])
            if self.mixup:
                partners = self._stack(shown, [batch[at - 1] for at in mine])
                part = mix(part, partners, self.mixup, self.classes, drawn.batch_seeds[number])
            yield RankBatch(part, len(range(len(batch))[rank::world_size]), len(batch))

    def _draw(self, epoch: int) -> _Draws:
        mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
        count = len(self.targets)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        seeds = torch.randint(2**32, (count,), generator=generator).tolist()
        batch_seeds = torch.randint(2**32, (len(self),), generator=generator).tolist()
        return _Draws(
            [part.tolist() for part in order.split(self.batch_size)][: len(self)], seeds, batch_seeds
        )

    def _decoded(self, reads: Sequence[Sequence[int]]) -> Iterator[list[Tensor]]:
        """Read the images of each batch; from disk, one batch is read ahead while the network computes."""
        if not isinstance(self.images, OnDisk):
            yield from ([self.images[number] for number in numbers] for numbers in reads)
            return
        with make_pool() as readers, ThreadPoolExecutor(1) as ahead:
            following: Future[list[Tensor]] | None = None
            for numbers in reads:
                current, following = following, ahead.submit(fetch, self.images, numbers, readers)
                if current is not None:
                    yield current.result()
            if following is not None:
                yield following.result()

    @cached_property
    def classes(self) -> int:
        """Return the number of classes."""
        return int(self.targets.max()) + 1

    def _shown(self, numbers: Sequence[int], images: Sequence[Tensor], drawn: _Draws) -> list[Tensor]:
        """Crop images to the size of the network, with augmentation if this loader has one."""
        height, width = self.input.size[1:]
        if self.augmentation is None:
            return [center(image, (height, width)) for image in images]
        transform = make_transform(self.augmentation, (height, width))
        return vary(images, [drawn.image_seeds[number] for number in numbers], transform)

    def _stack(self, shown: dict[int, Tensor], numbers: list[int]) -> Batch:
        return normalized(torch.stack([shown[number] for number in numbers]), self.input), self.targets[
            numbers
        ]


def normalized(images: Tensor, spec: InputSpec) -> Tensor:
    """Normalise images as a network expects them.

    Args:
        images: uint8, shape (B, C, H, W).
        spec: mean and deviation, of values in [0, 1].

    Returns:
        float32 of the same shape.

    >>> normalized(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), InputSpec((1, 1, 1), (0.5,), (0.25,)))
    tensor([[[[2.]]]])
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) * 255 for values in (spec.mean, spec.std))
    return images.float().sub_(mean).div_(std)


def epoch_of(batches: object) -> int | None:
    """Return the number of the next pass of :class:`Passes`; ``None`` for other batches."""
    return batches.epoch if isinstance(batches, Passes) else None


def set_epoch(batches: object, epoch: int | None) -> None:
    """Set the number of the next pass of :class:`Passes`; other batches are not changed."""
    if isinstance(batches, Passes) and epoch is not None:
        batches.epoch = epoch


@contextmanager
def at_epoch(batches: object, epoch: int) -> Iterator[None]:
    """Start :class:`Passes` at a pass in a block, and restore it afterwards; ignore other batches."""
    before = epoch_of(batches)
    set_epoch(batches, epoch)
    try:
        yield
    finally:
        set_epoch(batches, before)
