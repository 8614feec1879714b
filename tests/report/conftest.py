from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from secateur.jobs.prune import prune
from secateur.jobs.settings import PruneJob
from secateur.recipes import Recipe

# A network small enough to be pruned in a second, with a residual stream and a frozen group.
NETWORK = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 16, 3, padding=1)
        self.outer = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))
"""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that pruned a small network in two cuts, with training between."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "net.py").write_text(NETWORK)
    prune(
        PruneJob(
            network={"source": f"{folder / 'net.py'}:Small", "size": 16},
            data={"source": "digits", "batch_size": 64},
            out=folder / "small",
            budget={"macs": 0.5},
            latency_seconds=0,
            recipe=Recipe(steps=2, finetune={"epochs": 2}),
            command_line="secateur prune net.py:Small --macs 0.5",
        )
    )
    return folder / "small"


Change = Callable[[str, Callable[[str], str]], Path]


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Change:
    """Makes a copy of the run in which the text of one file is another."""

    def change(name: str, edit: Callable[[str], str]) -> Path:
        copy = tmp_path / "copy"
        if not copy.exists():
            copy.mkdir()
            for file in run.iterdir():
                if file.is_file():
                    (copy / file.name).write_text(file.read_text())
        (copy / name).write_text(edit((copy / name).read_text()))
        return copy

    return change
