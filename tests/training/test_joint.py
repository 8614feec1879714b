"""Several processes take the steps that one would take alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.criteria import watch
from secateur.graph import trace
from secateur.training.devices import Machine
from secateur.training.distillation import Teacher
from secateur.training.evaluate import evaluate
from secateur.training.fit import Surroundings, fit
from secateur.training.settings import FitSettings
from tests.crew import in_crew

CRITERIA = ("taylor", "taylor-squared", "taylor-weight", "activation-std", "reconstruction")


def network() -> nn.Module:
    """Batch norms between convolutions, and one with a single value of each channel an example."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 7),
        nn.BatchNorm1d(7, affine=False),
        nn.Linear(7, 4),
    )


def batches(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(size, 1, 6, 6, generator=generator), torch.randint(4, (size,), generator=generator))
        for size in sizes
    ]


def train(machine: Machine, sizes: tuple[int, ...], criterion: str) -> dict[str, Any]:
    """Two epochs with all that a fit can have, watched in the last."""
    model, examples = network(), batches(sizes)
    settings = FitSettings(epochs=2, average=0.5, clip_norm=1.0, label_smoothing=0.1, keep_best=False)
    watching = watch(model, trace(model, examples[0][0]), criterion, across_ranks=machine.ranks.together)
    state = fit(
        model,
        examples,
        settings,
        validation=batches((5, 1, 3)),
        teacher=Teacher(network(), 0.5),
        observe=watching,
        surroundings=Surroundings(machine),
    )
    found = evaluate(model, batches((4, 2, 1)), machine=machine)
    history = [[done.loss, done.top1, done.validation_loss] for done in state.history]
    return {
        "weights": dict(model.state_dict()),
        "scores": {name: watching.scores()[name] for name in watching.scores()},
        "history": torch.tensor(history, dtype=torch.float64),
        "judged": torch.tensor([found.top1, found.loss, found.examples], dtype=torch.float64),
    }


def check_same(work: Any, folder: Path, count: int, *args: Any) -> None:
    """All processes find the same bits, and what one would find but for the order of additions."""
    alone = in_crew(work, 1, folder, *args)[0]
    crew = in_crew(work, count, folder, *args)
    for found in crew[1:]:
        torch.testing.assert_close(found, crew[0], rtol=0, atol=0)
    torch.testing.assert_close(crew[0], alone, rtol=1e-5, atol=1e-6)


# The last batch of the second has an example for one process alone.
SIZES = {"even": (12, 12, 12), "uneven": (8, 7, 2, 5)}


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    check_same(train, tmp_path, 2, SIZES["uneven"], "taylor")


def train_all(machine: Machine) -> dict[str, Any]:
    return {
        f"{criterion} {name}": train(machine, sizes, criterion)
        for name, sizes in SIZES.items()
        for criterion in CRITERIA
    }


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_train_like_one(count: int, tmp_path: Path) -> None:
    check_same(train_all, tmp_path, count)
