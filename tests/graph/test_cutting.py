from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.errors import SurgeryError
from secateur.graph.channel_graph import AttributeValue
from secateur.graph.cutting.tensors import copy_with, cut_tensor, set_attributes


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


def test_large_tensors_are_cut_in_both_dimensions() -> None:
    weight = torch.randn(2100, 1030, generator=torch.Generator().manual_seed(0))
    rows, columns = np.arange(0, 2100, 2), np.delete(np.arange(1030), 7)
    small, same = cut_tensor(weight, {0: rows, 1: columns}), cut_tensor(weight.t(), {})
    assert torch.equal(small, weight[::2][:, torch.from_numpy(columns)])
    assert torch.equal(same, weight.t())
    assert small.is_contiguous()
    assert same.is_contiguous()


class Settings(NamedTuple):
    width: int
    depth: int


class Sized(nn.Module):
    fixed = 7

    def __init__(self) -> None:
        super().__init__()
        self.width, self.sizes, self.shape = 4, [1, 2, 3], (4, 5)
        self.settings = Settings(4, 2)
        self.name = "text"

    @property
    def area(self) -> int:
        """Cannot be set."""
        return 20


def test_attributes_are_set_and_put_back() -> None:
    model = nn.Sequential(Sized())
    before = dict(vars(model[0]))
    undo = set_attributes(
        model,
        [
            AttributeValue("0", "width", None, 3),
            AttributeValue("0", "sizes", 0, 10),
            AttributeValue("0", "sizes", 2, 30),
            AttributeValue("0", "shape", 1, 50),
            AttributeValue("0", "settings", 0, 3),
            AttributeValue("0", "fixed", None, 6),
        ],
    )
    sized = model[0]
    assert (sized.width, sized.sizes, sized.shape, sized.fixed) == (3, [10, 2, 30], (4, 50), 6)
    assert sized.settings == Settings(3, 2)
    assert isinstance(sized.settings, Settings)
    undo()
    assert vars(sized) == before
    assert sized.sizes is before["sizes"]
    assert sized.fixed == 7


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (AttributeValue("0", "name", None, 3), "no integer attribute 'name'"),
        (AttributeValue("0", "area", None, 3), "attribute 'area' of module '0' cannot be set"),
        (AttributeValue("0", "nothing", None, 3), "no integer attribute 'nothing'"),
        (AttributeValue("1", "width", None, 3), "has no module '1'"),
        (AttributeValue("0", "sizes", 3, 3), "no list attribute 'sizes'"),
        (AttributeValue("0", "width", 0, 3), "no list attribute 'width'"),
    ],
)
def test_attributes_are_set_all_or_not_at_all(bad: AttributeValue, message: str) -> None:
    model = nn.Sequential(Sized())
    before = dict(vars(model[0]))
    good = [AttributeValue("0", "width", None, 3), AttributeValue("0", "sizes", 0, 10)]
    with pytest.raises(SurgeryError, match=message):
        set_attributes(model, [*good, bad])
    assert vars(model[0]) == before


def test_tensors_computed_with_gradients_are_detached_in_a_copy() -> None:
    layer = nn.Linear(3, 2)
    layer.last = layer(torch.randn(4, 3))
    layer.history = [layer.last, {"again": layer.last, "twice": layer.last * 2}]
    twin = copy_with(layer, {})
    assert torch.equal(twin.last, layer.last.detach())
    assert twin.last.grad_fn is None
    assert twin.history[0] is twin.last
    assert twin.history[1]["again"] is twin.last
    assert torch.equal(twin.history[1]["twice"], layer.last.detach() * 2)
    assert layer.last.grad_fn is not None
    assert twin.last.data_ptr() != layer.last.data_ptr()
