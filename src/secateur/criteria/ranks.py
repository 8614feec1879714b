"""Ranks: adding up what the processes of a distributed run have seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from secateur.errors import UsageError


@dataclass(frozen=True)
class Ranks:
    """Collects over all processes of a run, or over this one alone.

    Attributes:
        together: whether the processes take part; then every one of them has to.

    >>> Ranks(together=False).sum(torch.tensor([1.0]))
    tensor([1.])
    """

    together: bool = False

    def __post_init__(self) -> None:
        if self.together and not (dist.is_available() and dist.is_initialized()):
            raise UsageError("there are no other processes to collect scores from; leave across_ranks out")

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes; the tensor itself is not changed."""
        if not self.together:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def concatenate(self, tensor: Tensor) -> Tensor:
        """The rows of a CPU tensor from all processes, in the order of their ranks."""
        if not self.together:
            return tensor
        parts: list[Tensor] = [tensor] * dist.get_world_size()
        dist.all_gather_object(parts, tensor)
        return torch.cat(parts)
