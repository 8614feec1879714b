from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.data import Augmentation, Loader
from secateur.models import InputSpec

SPEC = InputSpec((1, 2, 2), (0.0,), (1.0,))


def loader(count, batch_size=4, **settings):
    # Each image shows its own number.
    images = [torch.full((1, 2, 2), index, dtype=torch.uint8) for index in range(count)]
    return Loader(images, torch.arange(count), SPEC, batch_size, **settings)


def numbers(batches):
    return [targets.tolist() for _, targets in batches]


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.booleans(), st.integers(0, 2**40))
def test_every_image_once_and_as_many_batches_as_promised(count, batch_size, shuffle, drop_last, seed):
    batches = loader(count, batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed)
    seen = numbers(batches)
    assert len(seen) == len(batches)
    flat = [number for batch in seen for number in batch]
    assert len(set(flat)) == len(flat)
    if drop_last and count >= batch_size:
        assert {len(batch) for batch in seen} == {batch_size}
        assert count - len(flat) < batch_size
    else:
        assert sorted(flat) == list(range(count))


def test_images_and_targets_stay_together():
    for inputs, targets in loader(30, shuffle=True):
        assert torch.equal((inputs[:, 0, 0, 0] * 255).round().long(), targets)


def test_passes_differ_and_can_be_repeated():
    batches = loader(30, shuffle=True, seed=3)
    passes = [numbers(batches) for _ in range(3)]
    assert passes[0] != passes[1] != passes[2]
    assert batches.epoch == 3
    resumed = loader(30, shuffle=True, seed=3, epoch=2)
    assert numbers(resumed) == passes[2]
    resumed.epoch = 0
    assert numbers(resumed) == passes[0]
    assert numbers(loader(30, shuffle=True, seed=4)) != passes[0]


def test_an_abandoned_pass_counts():
    batches = loader(30, shuffle=True)
    next(iter(batches))
    assert numbers(batches) == numbers(loader(30, shuffle=True, epoch=1))


def test_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(1)
    first = numbers(loader(9, shuffle=True))
    state = torch.get_rng_state()
    assert numbers(loader(9, shuffle=True)) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_variation_depends_on_neither_order_nor_batch_size():
    images = list(torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8))
    spec = InputSpec((1, 8, 8), (0.0,), (1.0,))
    how = Augmentation(shift=3, flip=True)

    def varied(batch_size, epoch):
        batches = Loader(images, torch.arange(12), spec, batch_size, augmentation=how, epoch=epoch)
        return torch.cat([inputs for inputs, _ in batches])

    assert torch.equal(varied(5, epoch=1), varied(12, epoch=1))
    assert not torch.equal(varied(5, epoch=1), varied(5, epoch=2))


@pytest.mark.parametrize("drop_last", [False, True])
def test_shares_of_processes_make_up_the_whole(drop_last):
    """Batch by batch, whatever the number of processes; a process without an image borrows one."""
    expected = numbers(loader(11, batch_size=5, shuffle=True, drop_last=drop_last))
    for count in (2, 3, 7):
        parts = [
            list(loader(11, batch_size=5, shuffle=True, drop_last=drop_last).split(index, count))
            for index in range(count)
        ]
        for number, batch in enumerate(expected):
            shares = [part[number] for part in parts]
            mine = [share.batch[1][: share.examples].tolist() for share in shares]
            assert sorted(target for targets in mine for target in targets) == sorted(batch)
            for share in shares:
                inputs, targets = share.batch
                assert share.total == len(batch)
                assert len(targets) == max(1, share.examples)
                assert torch.equal((inputs[:, 0, 0, 0] * 255).round().long(), targets)
