from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sec
from secateur.data import DataSettings, Loader, open_data
from secateur.data.augment import mix
from secateur.errors import UsageError
from secateur.models import InputSpec

SPEC = InputSpec((1, 2, 2), (0.0,), (1 / 255,))


def loader(count: int, batch_size: int, mixup: float = 0.4, seed: int = 0) -> Loader:
    """Each image shows its own number, which is its class."""
    images = [torch.full((1, 2, 2), index, dtype=torch.uint8) for index in range(count)]
    return Loader(images, torch.arange(count), SPEC, batch_size, seed=seed, shuffle=True, mixup=mixup)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_weights_have_mean_and_variance_of_the_beta_distribution(alpha: float) -> None:
    cat, dog = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    pairs = (cat, torch.tensor([0])), (dog, torch.tensor([1]))
    weights = torch.stack([mix(*pairs, alpha, 2, seed)[1][0, 0] for seed in range(1500)])
    assert weights.mean() == pytest.approx(0.5, abs=0.04)
    assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 99))
def test_images_and_classes_are_blended_alike(count: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, count, 3, 2, 2)).astype(np.float32)
    first, second = rng.integers(0, classes, (2, count))
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    inputs, targets = mix(
        (torch.from_numpy(one), torch.from_numpy(first)),
        (torch.from_numpy(other), torch.from_numpy(second)),
        0.4,
        classes,
        seed,
    )
    assert torch.equal(torch.get_rng_state(), before)
    apart = first != second
    kept = targets[np.arange(count), first].numpy()
    assert len(set(kept[apart].tolist())) <= 1
    for place in np.flatnonzero(apart):
        expected = np.zeros(classes)
        expected[first[place]] += kept[place]
        expected[second[place]] += 1 - kept[place]
        np.testing.assert_allclose(
            inputs[place], kept[place] * one[place] + (1 - kept[place]) * other[place], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(targets[place], expected, atol=1e-6)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_a_loader_shows_what_its_targets_say(count: int, batch_size: int, seed: int) -> None:
    numbers = torch.arange(count).float()
    for inputs, targets in loader(count, batch_size, seed=seed):
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
        torch.testing.assert_close(inputs[:, 0, 0, 0], targets @ numbers, rtol=1e-4, atol=1e-3)
        assert ((targets > 0).sum(1) <= 2).all()


def test_passes_differ_and_can_be_repeated() -> None:
    passes = [torch.cat([targets for _, targets in loader(12, 4, seed=seed)]) for seed in (3, 3, 4)]
    assert torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[0], passes[2])
    assert (passes[0].max(1).values < 1).any()


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shares_of_processes_make_up_the_whole(count: int) -> None:
    """A process blends with images that others show, and comes to what one process comes to."""
    whole = list(loader(11, 5))
    parts = [list(loader(11, 5).split(index, count)) for index in range(count)]
    for number, batch in enumerate(whole):
        for index, part in enumerate(parts):
            share = part[number]
            for found, expected in zip(share.batch, batch, strict=True):
                assert torch.equal(found[: share.examples], expected[index::count])


def test_only_training_images_are_blended_and_only_where_they_are_varied() -> None:
    data = open_data("digits", InputSpec((1, 8, 8), (0.0,), (1.0,)), DataSettings(mixup=0.2))
    assert next(iter(data.training_batches()))[1].shape == (32, 10)
    for batches in (data.training_batches(augment=False), data.validation_batches(), data.test_batches()):
        assert next(iter(batches))[1].dtype == torch.int64


@pytest.mark.parametrize("mixup", [-0.1, float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(mixup: float) -> None:
    with pytest.raises(UsageError, match="must be a number of at least 0"):
        DataSettings(mixup=mixup)


def test_a_network_with_more_outputs_than_the_data_has_classes_is_trained_on_mixed_images() -> None:
    images = [torch.full((1, 2, 2), index, dtype=torch.uint8) for index in range(16)]
    mixed = Loader(images, torch.arange(16) % 2, SPEC, 4, mixup=1.0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
    recipe = sec.Recipe.preset("default", finetune={"epochs": 1})
    result = sec.prune(net, torch.randn(2, 1, 2, 2), sec.Budget(channels=0.5), batches=mixed, recipe=recipe)
    assert result.ok
    assert not torch.equal(result.model[3].bias, net[3].bias)  # it was trained
