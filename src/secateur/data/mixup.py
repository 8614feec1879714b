"""Mixup: pictures blended in pairs, and their classes alike (arXiv 1710.09412)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot


def kept_shares(mixup: float, count: int, seed: int) -> Tensor:
    """The share that each picture keeps of itself, drawn from Beta(mixup, mixup), section 2 of the paper.

    Args:
        mixup: 0 keeps all, large numbers about half.
        count: number of pictures.
        seed: of the draws.

    Returns:
        Numbers in [0, 1], float32, shape (count,).

    >>> kept_shares(0, 3, seed=0)
    tensor([1., 1., 1.])
    """
    if not mixup:
        return torch.ones(count)
    return torch.from_numpy(np.random.default_rng(seed).beta(mixup, mixup, count)).float()


def blend(
    batch: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], kept: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Pictures blended with others, and the shares of the classes in them, equation 1 of the paper.

    Args:
        batch: pictures, shape (B, C, H, W), and their classes, int64, shape (B,).
        others: what they are blended with, alike.
        kept: the share that each keeps, shape (B,).
        classes: how many there are.

    Returns:
        Pictures of the same shape, and the shares, float32, shape (B, classes), which add up to one.

    >>> cat, dog = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    >>> pictures, shares = blend(
    ...     (cat, torch.tensor([0])), (dog, torch.tensor([1])), torch.tensor([0.75]), classes=2
    ... )
    >>> pictures.item(), shares.tolist()
    (0.25, [[0.75, 0.25]])
    """
    (inputs, targets), (inputs_of_others, targets_of_others) = batch, others
    share = kept[:, None]
    mixed = torch.lerp(inputs_of_others, inputs, share[:, :, None, None])
    of_own, of_other = (one_hot(some, classes).float() for some in (targets, targets_of_others))
    return mixed, torch.lerp(of_other, of_own, share)
