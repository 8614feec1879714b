"""Seeds that are set before every pass of a check, and those that a network sets itself."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sec
from secateur.exact import seed_everything


def drawn() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a device that is there is seeded too")
def test_seeds_are_those_of_the_libraries_and_note_no_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = drawn()
    # PyTorch keeps one for every device that is not there, for as long as the process runs.
    monkeypatch.setattr(traceback, "format_stack", None)
    seed_everything()
    assert drawn() == expected


class Seeding(nn.Module):
    """Set a seed in the forward pass, before dropout."""

    def __init__(self, seed: Callable[[], object], *, in_training: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 12), nn.Linear(12, 3)
        self.seed, self.in_training = [seed], in_training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or not self.in_training:
            self.seed[0]()
        drops = self.training or not self.in_training
        return self.two(nn.functional.dropout(self.one(x).relu(), 0.4, drops))


@pytest.mark.parametrize("seed", [lambda: torch.manual_seed(3), torch.seed])
def test_a_seed_before_the_dropout_of_training_changes_nothing(seed: Callable[[], object]) -> None:
    torch.manual_seed(0)
    model, x = Seeding(seed, in_training=True).eval(), torch.randn(4, 6)
    graph = sec.trace(model, x)
    assert graph["one"].reason is None
    plan = sec.plan_from(graph, {"one": [0, 1, 7]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, x).ok


def test_a_mask_that_a_seed_fixes_in_evaluation_freezes_what_it_hides() -> None:
    torch.manual_seed(0)
    model = Seeding(lambda: torch.manual_seed(3), in_training=False).eval()
    assert "not verified" in str(sec.trace(model, torch.randn(4, 6))["one"].reason)
