from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.data.augment import crop_box, middle, vary
from secateur.data.settings import Augmentation, DataSettings, shorter_side
from secateur.errors import UsageError
from secateur.models import InputSpec

UNIT = st.floats(0, 0.999)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 1), st.floats(1, 2), UNIT, UNIT, UNIT, UNIT)
def test_crops_lie_within_the_picture(height, width, low, most, area, aspect, down, right):
    box = crop_box((height, width), Augmentation((low, 1.0), most), area, aspect, down, right)
    top, left, tall, wide = box
    assert top >= 0 and left >= 0 and tall >= 1 and wide >= 1  # noqa: PT018
    assert top + tall <= height
    assert left + wide <= width


def test_crops_have_the_wanted_area_and_aspect_and_reach_every_corner():
    how = Augmentation(area=(0.25, 0.5), aspect=1.2)
    draws = torch.rand(2000, 4, dtype=torch.float64).tolist()
    boxes = torch.tensor([crop_box((200, 200), how, *row) for row in draws], dtype=torch.float64)
    top, left, tall, wide = boxes.T
    share, ratio = tall * wide / 200**2, wide / tall
    assert share.min() == pytest.approx(0.25, abs=0.01)
    assert share.max() == pytest.approx(0.5, abs=0.01)
    assert share.mean() == pytest.approx(0.375, abs=0.01)
    assert ratio.min() == pytest.approx(1 / 1.2, abs=0.02)
    assert ratio.max() == pytest.approx(1.2, abs=0.02)
    assert min(top.min(), left.min()) == 0
    assert (top + tall).max() == (left + wide).max() == 200


def test_the_whole_picture_unvaried_is_the_picture():
    picture = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    draws = torch.zeros(5)
    assert torch.equal(vary(picture, draws, Augmentation(), (8, 8)), picture)
    assert torch.equal(vary(picture, draws, Augmentation(area=(1.0, 1.0), aspect=1.0), (8, 8)), picture)


def test_flip_mirrors_half_of_the_draws():
    picture = torch.arange(4, dtype=torch.uint8).view(1, 1, 4)
    for draw, expected in ((0.49, [0, 1, 2, 3]), (0.5, [3, 2, 1, 0])):
        varied = vary(picture, torch.tensor([0, 0, 0, 0, draw]), Augmentation(flip=True), (1, 4))
        assert varied.flatten().tolist() == expected


def test_shift_moves_over_black_by_every_distance():
    picture = torch.full((1, 4, 4), 9, dtype=torch.uint8)
    for down, rows in ((0.0, [0, 9, 9, 9]), (0.5, [9, 9, 9, 9]), (0.99, [9, 9, 9, 0])):
        moved = vary(picture, torch.tensor([0, 0, down, 0.5, 0]), Augmentation(shift=1), (4, 4))
        assert moved[0].tolist() == [[row] * 4 for row in rows]


def test_middle():
    picture = torch.arange(25).view(1, 5, 5)
    assert middle(picture, (1, 3)).tolist() == [[[11, 12, 13]]]


def test_what_suits_the_size():
    assert Augmentation.suited_to(InputSpec()) == Augmentation(area=(0.35, 1.0), flip=True)
    assert Augmentation.suited_to(InputSpec((3, 64, 64))) == Augmentation(shift=8, flip=True)
    assert shorter_side(InputSpec((3, 112, 64))) == 128


@pytest.mark.parametrize(
    "settings",
    [{"area": (0.0, 1.0)}, {"area": (0.5, 0.2)}, {"area": (0.5, 1.5)}, {"aspect": 0.5}, {"shift": -1}],
)
def test_augmentation_is_checked(settings):
    with pytest.raises(UsageError):
        Augmentation(**settings)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"seed": -1}, {"held_out": 0.0}, {"held_out": 1.0}])
def test_settings_are_checked(settings):
    with pytest.raises(UsageError):
        DataSettings(**settings)
