from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.responses import Window

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@settings(max_examples=40, deadline=None)
@given(
    dims=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1, "same"]),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
)
def test_patches_times_weights_are_the_convolution(
    dims: int, kernel: int, stride: int, dilation: int, groups: int, padding: int | str, mode: str
) -> None:
    if padding == "same":  # which PyTorch has for stride 1, and warns of for even kernels
        stride, kernel = 1, kernel | 1
    layer = CONVOLUTIONS[dims](
        4, 6, kernel, stride, padding, dilation, groups, padding_mode=mode, dtype=torch.float64
    )
    x = torch.randn(2, 4, *[7, 6, 5][:dims], dtype=torch.float64)
    expected = layer(x)
    window = Window.of_module(layer)
    assert window is not None
    patches = window.patches(x)
    weight = layer.weight.reshape(groups, 6 // groups, -1)
    found = patches @ weight.mT + layer.bias.reshape(groups, 1, -1)
    assert torch.allclose(found, window.single.patches(expected), atol=1e-12)
    assert window.positions(tuple(x.shape)) == expected[0, 0].numel()


def test_chosen_positions_are_rows_of_all_patches() -> None:
    window = Window.of_options((3, 2), (2, 1), (1, 0), (1, 2))
    x = torch.randn(3, 2, 9, 8)
    count, chosen = window.positions(tuple(x.shape)), torch.tensor([0, 7, 11])
    every = window.patches(x).reshape(1, 3, count, -1)
    assert torch.equal(window.patches(x, chosen).reshape(1, 3, 3, -1), every[:, :, chosen])


def test_columns_are_in_the_order_of_unfold() -> None:
    x = torch.randn(2, 3, 6, 6)
    expected = F.unfold(x, 3, dilation=2, padding=1, stride=2).mT.reshape(1, -1, 27)
    assert torch.equal(Window.of_options((3, 3), 2, 1, 2).patches(x), expected)


def test_a_linear_layer_sees_rows() -> None:
    x = torch.randn(2, 5, 4)
    assert torch.equal(Window().patches(x), x.reshape(1, 10, 4))
    assert torch.equal(Window().patches(x, torch.tensor([3])), x[:, 3][None])


@pytest.mark.parametrize("module", [nn.ReLU(), nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(3)])
def test_other_modules_have_no_window(module: nn.Module) -> None:
    assert Window.of_module(module) is None
