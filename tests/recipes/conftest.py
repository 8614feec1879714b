from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def net() -> nn.Sequential:
    """Two convolutions with batch norm and two linear layers; all but the last are prunable."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 16),
            nn.ReLU(),
            nn.Linear(16, 3),
        )


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 1, 6, 6, generator=generator)
    targets = torch.randint(3, (32,), generator=generator)
    return list(zip(inputs.split(8), targets.split(8), strict=True))


@pytest.fixture
def example() -> Tensor:
    return torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(2))
