"""Divide tokens into blocks of one length, and form batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from secateur.data.loader import Passes
from secateur.training.losses import NOT_COUNTED

Blocks = tuple[dict[str, Tensor], Tensor]
"""Inputs ``{"input_ids": ids}`` and targets, each int64 of shape (batch, block)."""


@dataclass
class TextBlocks(Passes):
    """Batches of blocks of tokens; they can be iterated several times.

    A batch is a pair: ``{"input_ids": ids}`` for the network, and the targets of
    :func:`secateur.training.losses.next_token_loss`: the same ids, or -100 where a token is read and does not
    count. There is no padding, so no attention mask is needed. The seed and the number of a pass determine
    the order: equal numbers give the same batches.

    Attributes:
        ids: of all blocks, int64, shape (blocks, block).
        batch_size: blocks in a batch.
        targets: like ``ids``, or -100; ``ids`` if not given.
        shuffle: whether each pass has a different order; a last batch that is not full is then left out,
            unless it is the only one.
        seed: of the order.
        epoch: number of the next pass; each pass adds one.

    >>> blocks = TextBlocks(torch.arange(12).view(3, 4), batch_size=2)
    >>> [(inputs["input_ids"].shape, targets.shape) for inputs, targets in blocks]
    [(torch.Size([2, 4]), torch.Size([2, 4])), (torch.Size([1, 4]), torch.Size([1, 4]))]
    """

    ids: Tensor = field(repr=False)
    batch_size: int
    targets: Tensor | None = field(default=None, repr=False)
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self.ids), self.batch_size)
        return full if self.shuffle and full else full + bool(rest)

    def __iter__(self) -> Iterator[Blocks]:
        """Return the batches of a pass."""
        order = torch.arange(len(self.ids))
        if self.shuffle:
            seeds = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
            draw = torch.Generator().manual_seed(int(seeds[0] >> np.uint64(1)))
            order = torch.randperm(len(self.ids), generator=draw)
        self.epoch += 1
        targets = self.ids if self.targets is None else self.targets
        for chosen in order.split(self.batch_size)[: len(self)]:
            yield {"input_ids": self.ids[chosen]}, targets[chosen]


def blocks_of(tokens: Tensor, block: int) -> Tensor:
    """Divide tokens into blocks that follow each other; a rest that fills no block is left out.

    >>> blocks_of(torch.arange(7), 3)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    return tokens[: len(tokens) // block * block].view(-1, block)


def overlapping_blocks(tokens: Tensor, block: int, stride: int) -> tuple[Tensor, Tensor]:
    """Divide tokens into blocks that overlap, so that tokens are predicted from more tokens before them.

    Args:
        tokens: one dimension.
        block: length of a block.
        stride: tokens from the start of a block to that of the next, at most ``block``.

    Returns:
        The blocks, and their targets: -100 where a token was predicted in the block before. A rest that
        fills no block is left out.

    >>> overlapping_blocks(torch.arange(6), block=4, stride=2)[1]
    tensor([[   0,    1,    2,    3],
            [-100, -100,    4,    5]])
    """
    ids = tokens.unfold(0, block, stride).clone()
    targets = ids.clone()
    # Without an overlap, the first token of a block is not predicted, as there is nothing before it.
    targets[1:, : block - stride] = NOT_COUNTED
    return ids, targets
