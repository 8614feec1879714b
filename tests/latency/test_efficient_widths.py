from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.graph.groups import IntArray
from secateur.latency import efficient_widths


class Law:
    """Milliseconds from a function of each width."""

    def __init__(self, step: int, slope: float) -> None:
        self.step, self.slope = step, slope

    def milliseconds(self, widths: IntArray) -> np.ndarray:
        return (np.ceil(widths / self.step) * self.step + self.slope * widths).sum(-1)


@given(st.sampled_from([4, 8, 16]), st.integers(32, 150))
def test_only_the_ends_of_steps_are_efficient(step: int, width: int) -> None:
    (found,) = efficient_widths(Law(step, 0.01), np.array([width]))
    assert found[-1] == width
    assert all(size % step == 0 for size in found[:-1].tolist())
    assert set(range(step, width, step)) <= set(found.tolist())


@given(st.integers(1, 100))
def test_every_width_is_efficient_where_all_channels_cost_the_same(width: int) -> None:
    (found,) = efficient_widths(Law(1, 0.0), np.array([width]))
    assert found.tolist() == list(range(1, width + 1))


def test_widths_slower_than_wider_ones_are_left_out() -> None:
    class Odd:
        def milliseconds(self, widths: IntArray) -> np.ndarray:
            return widths[..., 0] + 30.0 * (widths[..., 0] % 2)

    (found,) = efficient_widths(Odd(), np.array([20]))
    assert found.tolist() == list(range(2, 21, 2))


def test_groups_are_examined_one_by_one() -> None:
    found = efficient_widths(Law(8, 0.01), np.array([16, 24]))
    assert [sizes.tolist() for sizes in found] == [[8, 16], [8, 16, 24]]


def test_a_constant_time_leaves_the_full_width() -> None:
    class Constant:
        def milliseconds(self, widths: IntArray) -> np.ndarray:
            return np.ones(widths.shape[:-1])

    (found,) = efficient_widths(Constant(), np.array([5]))
    assert found[-1] == pytest.approx(5)
