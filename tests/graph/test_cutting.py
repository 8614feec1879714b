from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.graph import memory
from secateur.graph.cutting import cut_tensor


@given(data=st.data(), shape=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_a_cut_is_the_grid_of_kept_positions(data: st.DataObject, shape: list[int]) -> None:
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    dims = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    kept = {
        dim: np.array(sorted(data.draw(st.sets(st.integers(0, shape[dim] - 1), min_size=1)))) for dim in dims
    }
    grid = np.ix_(*(kept.get(dim, np.arange(size)) for dim, size in enumerate(shape)))
    result = cut_tensor(tensor, kept)
    assert torch.equal(result, tensor[grid])
    assert result.data_ptr() != tensor.data_ptr()


@settings(max_examples=30)
@given(data=st.data(), block=st.integers(1, 5), count=st.integers(1, 6))
def test_whole_blocks_of_channels_are_cut_alike(data: st.DataObject, block: int, count: int) -> None:
    """What a flattening leaves behind: each channel is a run of positions."""
    channels = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    kept = np.concatenate([np.arange(channel * block, (channel + 1) * block) for channel in channels])
    weight = torch.arange(3.0 * count * block).reshape(3, count * block)
    assert torch.equal(cut_tensor(weight, {1: kept}), weight[:, torch.from_numpy(kept)])


@pytest.mark.parametrize("advised", [True, False])
def test_large_tensors_are_cut_alike_with_and_without_huge_pages(advised: bool) -> None:
    weight = torch.randn(2100, 1030, generator=torch.Generator().manual_seed(0))
    rows, columns = np.arange(0, 2100, 2), np.delete(np.arange(1030), 7)
    advise = memory._madvise() if advised else None
    calls: list[int] = []

    def counted(*arguments: object) -> int:
        assert advise is not None
        calls.append(advise(*arguments))
        return calls[-1]

    with (
        patch.object(memory, "_LARGE", 1 << 20),
        patch.object(memory, "_madvise", lambda: counted if advise else None),
    ):
        small = cut_tensor(weight, {0: rows, 1: columns})
        same = memory.clone(weight)
    assert torch.equal(small, weight[::2][:, torch.from_numpy(columns)])
    assert torch.equal(same, weight)
    assert small.is_contiguous()
    assert (len(calls) >= 2) == (advise is not None)
