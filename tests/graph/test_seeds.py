"""Seeds that are set before every pass of a check."""

from __future__ import annotations

import random
import traceback

import numpy as np
import pytest
import torch

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
