from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from secateur.data import DataSettings, digits
from secateur.errors import UsageError
from secateur.models import InputSpec


def rows(split):
    return {tuple(image.flatten().tolist()) for image in split.images}


def test_parts_are_disjoint_and_complete():
    data = digits()
    parts = [data.train, data.validation, data.test]
    assert sum(map(len, parts)) == 1797
    # All 1,797 images are different, so pixels tell them apart.
    assert len(set.union(*map(rows, parts))) == 1797
    for part in parts:
        counts = part.counts(10)
        assert min(counts) >= 0.9 * max(counts)


def test_parts_do_not_depend_on_the_seed():
    first, second = digits(settings=DataSettings(seed=0)), digits(settings=DataSettings(seed=1))
    assert torch.equal(first.test.targets, second.test.targets)
    assert rows(first.test) == rows(second.test)


def test_pixels_are_those_of_scikit_learn():
    data = digits()
    raw, labels = load_digits(return_X_y=True)
    expected = {(*np.rint(x * 255 / 16).astype(int).tolist(), y) for x, y in zip(raw, labels, strict=True)}
    got = {
        (*image.flatten().tolist(), target)
        for split in (data.train, data.validation, data.test)
        for image, target in zip(split.images, split.targets.tolist(), strict=True)
    }
    assert got == expected


def test_training_batches_are_normalised_and_not_varied():
    data = digits()
    inputs = torch.cat([inputs for inputs, _ in data.training_batches()])
    assert abs(inputs.mean().item()) < 0.01
    assert abs(inputs.std().item() - 1) < 0.01
    first = {tuple(x.flatten().tolist()) for x in inputs.mul(0.376).add(0.305).mul(255).round().int()}
    assert first <= rows(data.train)


def test_other_sizes_and_colours():
    data = digits(InputSpec((3, 16, 16)))
    inputs, _ = next(iter(data.test_batches()))
    assert inputs.shape == (32, 3, 16, 16)
    assert data.test.images[0].float().mean().item() > 20


def test_a_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"pip install 'torch-secateur\[demo\]'$"):
        digits()
