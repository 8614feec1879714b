from __future__ import annotations

import pytest
import torch

from secateur.data.augment import center, make_transform, vary
from secateur.data.settings import Augmentation, DataSettings, shorter_side
from secateur.errors import UsageError
from secateur.models import InputSpec


def varied(image, how, size, count=400):
    return vary([image] * count, range(count), make_transform(how, size))


def test_crops_have_the_wanted_area_and_aspect_and_reach_every_corner():
    # Each pixel shows where it lies, so the corners of a crop say where it was taken.
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    image = torch.stack([rows, columns]).byte()
    crops = varied(image, Augmentation(area=(0.25, 0.5), aspect=1.2), (200, 200))
    edges = torch.stack([crop[:, [0, -1], [0, -1]].float().flatten() for crop in crops])
    top, bottom, left, right = edges.T
    tall, wide = bottom - top + 1, right - left + 1
    share, ratio = tall * wide / 200**2, wide / tall
    assert share.min() == pytest.approx(0.25, abs=0.02)
    assert share.max() == pytest.approx(0.5, abs=0.02)
    assert share.mean() == pytest.approx(0.375, abs=0.02)
    assert ratio.min() == pytest.approx(1 / 1.2, abs=0.03)
    assert ratio.max() == pytest.approx(1.2, abs=0.03)
    assert min(top.min(), left.min()) <= 1
    assert max(bottom.max(), right.max()) >= 198


def test_the_whole_image_unvaried_is_the_image():
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    for how in (Augmentation(), Augmentation(area=(1.0, 1.0), aspect=1.0)):
        assert torch.equal(varied(image, how, (8, 8), 1)[0], image)


def test_flip_mirrors_half_of_the_images():
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 4)
    found = [one.flatten().tolist() for one in varied(image, Augmentation(flip=True), (1, 4))]
    assert 160 < found.count([3, 2, 1, 0]) < 240
    assert found.count([3, 2, 1, 0]) + found.count([0, 1, 2, 3]) == len(found)


def test_shift_moves_over_black_by_every_distance():
    image = torch.full((1, 4, 4), 9, dtype=torch.uint8)
    found = varied(image, Augmentation(shift=1), (4, 4))
    rows = {tuple(one[0].amax(1).tolist()) for one in found}
    assert rows == {(0, 9, 9, 9), (9, 9, 9, 9), (9, 9, 9, 0)}


def test_each_image_follows_from_its_seed_alone_and_the_generator_is_put_back():
    image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    transform = make_transform(Augmentation(area=(0.3, 1.0), flip=True), (8, 8))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    several = vary([image] * 3, [5, 6, 7], transform)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    [alone] = vary([image], [6], transform)
    assert torch.equal(alone, several[1])
    assert not torch.equal(several[0], several[1])


def test_center():
    image = torch.arange(25).view(1, 5, 5)
    assert center(image, (1, 3)).tolist() == [[[11, 12, 13]]]


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


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"seed": -1}, {"held_out": -0.1}, {"held_out": 1.0}])
def test_settings_are_checked(settings):
    with pytest.raises(UsageError):
        DataSettings(**settings)
