"""Score channels at random: the control that a criterion has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.criteria.base import ObservedNetwork, register
from secateur.criteria.weight import DataFreeCriterion
from secateur.graph.groups import Group


@register
@dataclass(frozen=True)
class Random(DataFreeCriterion):
    """Uniform random numbers in [0, 1).

    They depend only on the seed and on the group's name, not on the other groups or on the
    state of a global generator.

    Attributes:
        seed: gives another draw.
    """

    seed: int = 0
    name: ClassVar[str] = "random"
    scores_branches: ClassVar[bool] = True

    def value(self, group: Group, network: ObservedNetwork) -> Tensor:
        """Draw a number for each channel of the group."""
        return self._drawn(group.name, group.channels)

    def of_branch(self, name: str) -> float:
        """Draw a number for a residual branch."""
        return float(self._drawn(f"branch {name}", 1))

    def _drawn(self, name: str, count: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.rand(count, generator=generator)
