"""Describe the inputs that a network expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

from secateur.errors import UsageError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """Shape and normalisation of the images that a network expects.

    Attributes:
        size: channels, height and width of one input.
        mean: mean per channel of images whose values lie in [0, 1].
        std: standard deviation per channel, likewise.

    >>> InputSpec((3, 64, 64)).example(batch=2).shape
    torch.Size([2, 3, 64, 64])
    """

    size: tuple[int, ...] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if len(self.size) != 3 or min(self.size) < 1:
            raise UsageError(f"input size {self.size} is not channels, height, width: give e.g. 3,224,224")
        if not len(self.mean) == len(self.std) == self.size[0]:
            raise UsageError(
                f"{self.size[0]} input channels need as many means and deviations, "
                f"but {len(self.mean)} and {len(self.std)} are given"
            )
        if min(self.std) <= 0:
            raise UsageError(f"the deviations {self.std} to divide by must be positive")

    def example(self, batch: int = 1) -> torch.Tensor:
        """Draw a batch of the right shape from a fixed seed, shape ``(batch, *size)``, float32."""
        return torch.randn(batch, *self.size, generator=torch.Generator().manual_seed(0))
