from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

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
