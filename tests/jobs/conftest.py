from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from secateur.jobs.settings import TrainJob
from secateur.jobs.train import train

# A network small enough that an epoch over the digits takes a tenth of a second.
SMALL_NETWORK = """
from torch import nn


def small(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )
"""


@pytest.fixture(scope="session")
def small_network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A user's own file and function."""
    file = tmp_path_factory.mktemp("nets") / "mine.py"
    file.write_text(SMALL_NETWORK)
    return f"{file}:small"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the network for digits, trained for an epoch."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    train(
        TrainJob(
            network={"source": "secateur:digits"},
            data={"source": "digits", "batch_size": 64},
            out=out,
            latency_seconds=0,
            fit={"epochs": 1, "optimizer": {"learning_rate": 0.05}},
        )
    )
    return out


@pytest.fixture(scope="session")
def small_trained(small_network: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The user's own network, trained for an epoch: the choice of it."""
    out = tmp_path_factory.mktemp("runs") / "small"
    train(
        TrainJob(
            network={"source": small_network, "size": 8},
            data={"source": "digits", "batch_size": 64},
            out=out,
            latency_seconds=0,
            fit={"epochs": 1, "optimizer": {"learning_rate": 0.05}},
        )
    )
    return {"source": str(out), "builder": small_network}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of each of two classes in each split; one of them is broken."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for number, name in enumerate(("dark", "light")):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for index in range(10):
                pixels = torch.randint(128, (16, 16, 3), generator=generator) + 127 * number
                Image.fromarray(pixels.byte().numpy()).save(place / f"{index}.png")
    (tmp_path / "images" / "test" / "dark" / "0.png").write_bytes(b"\x89PNG broken")
    return tmp_path / "images"
