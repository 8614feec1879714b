from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.training.schedules import CURVES, factor


@given(
    name=st.sampled_from(sorted(CURVES)),
    steps=st.integers(1, 60),
    warmup=st.floats(0, 0.99),
)
def test_every_factor_is_a_share_of_the_base_and_the_base_is_reached(
    name: str, steps: int, warmup: float
) -> None:
    factors = [factor(name, step, steps, warmup) for step in range(steps)]
    assert all(0 < value <= 1 for value in factors)
    if name != "one-cycle":  # which may step over its peak
        assert max(factors) == 1


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_cosine_agrees_with_pytorch(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for step in range(steps):
        assert factor("cosine", step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_one_cycle_agrees_with_pytorch_up_to_its_end() -> None:
    steps = 100
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, div_factor=25, final_div_factor=400, cycle_momentum=False
    )
    for step in range(steps):
        # PyTorch reaches its last value at the last step, we would one step later.
        assert factor("one-cycle", step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.06)
        optimizer.step()
        scheduler.step()


def test_warm_up_climbs_in_a_straight_line() -> None:
    assert [factor("cosine", step, 20, warmup=0.25) for step in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )
