"""Differences of outputs, slice by slice, compared with loops over the slices."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.graph.checking.compare import Outputs, Slices, differences

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def outputs(values: np.ndarray, dtype: torch.dtype) -> Outputs:
    return Outputs.of(torch.from_numpy(values).to(dtype))


@given(
    shape=SHAPES,
    others=st.integers(0, 2),
    seed=st.integers(0, 99),
    infinite=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_every_slice_has_its_own_gap_and_scale(
    shape: list[int], others: int, seed: int, infinite: bool, dtype: torch.dtype
) -> None:
    generator = np.random.default_rng(seed)
    # Multiples of a quarter are exact in both dtypes.
    want, have, *moves = (generator.integers(-8, 9, (2 + others, *shape)) / 4).astype(float)
    expected, found = want.copy(), have.copy()
    if infinite:
        place = tuple(generator.integers(0, size) for size in shape)
        expected[place] = found[place] = np.inf
        want[place] = have[place] = 0.0
    slices = differences(
        outputs(expected, dtype), outputs(found, dtype), [outputs(move, dtype) for move in moves]
    )
    assert not isinstance(slices, str)
    assert [item.dim for item in slices] == sorted({len(shape) - 1, min(1, len(shape) - 1)})
    for item in slices:
        for index in range(shape[item.dim]):
            one, two, *rest = (np.take(values, index, item.dim) for values in (want, have, *moves))
            assert item.gap[index] == np.abs(one - two).max()
            assert item.size[index] == np.abs(one).max()
            change = [np.abs(one - other).max() for other in rest]
            if item.dim > 0:
                change.append((one.max(0) - one.min(0)).max())
            scale = max(change, default=0.0) or np.abs(one).max() or np.abs(want).max()
            assert item.scale[index] == scale


def test_a_noisy_slice_does_not_hide_behind_a_precise_one() -> None:
    """The second channel is wrong by a fifth, within its noise; the first one is nearer to its limit."""
    scale = torch.ones(3, dtype=torch.float64)
    gap = torch.tensor([0.9e-8, 0.2, 0.0], dtype=torch.float64)
    noise = torch.tensor([0.0, 0.1, 0.0], dtype=torch.float64)
    found = Slices("", 1, gap, scale, scale).exceeding(noise, 1e-8)
    assert found.noisy
    assert not found.only_noisy
    assert found.error == 0.9e-8
    wrong = Slices("", 1, torch.tensor([1e-3, 0.2, 0.0]).double(), scale, scale).exceeding(noise, 1e-8)
    assert wrong.times > 1


def test_too_much_noise_everywhere_leaves_nothing_to_compare() -> None:
    scale = torch.ones(2, dtype=torch.float64)
    found = Slices("", 1, 0.1 * scale, scale, scale).exceeding(scale, 1e-8)
    assert found.noisy
    assert found.only_noisy
