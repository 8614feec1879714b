from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from secateur.training.random_state import seeded


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


def fail_after_drawing() -> None:
    with seeded(9):
        draw()
        raise RuntimeError("inside")


def test_the_same_seed_gives_the_same_numbers() -> None:
    with seeded(1):
        first = draw()
    with seeded(1):
        assert draw() == first
    with seeded(2):
        assert all(new != old for new, old in zip(draw(), first, strict=True))


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been() -> None:
    with seeded(5):
        expected = [draw(), draw()]
    with seeded(5):
        got = [draw()]
        with pytest.raises(RuntimeError, match="inside"):
            fail_after_drawing()
        got.append(draw())
    assert got == expected
