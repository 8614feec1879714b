from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from secateur.errors import CheckpointError
from secateur.training.resume import Entry, restore, snapshot

OPTIMIZERS: list[Callable[[nn.Module], Optimizer]] = [
    lambda net: SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    lambda net: AdamW(net.parameters(), lr=0.1),
    lambda net: SGD(net.parameters(), lr=0.1),
]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2))


def steps(model: nn.Module, optimizer: Optimizer, count: int) -> list[Tensor]:
    """Training with dropout, so that chance matters too."""
    losses = []
    for number in range(count):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_training_goes_on_to_the_bit(make: Callable[[nn.Module], Optimizer]) -> None:
    with torch.random.fork_rng():
        model = net()
        optimizer = make(model)
        steps(model, optimizer, 3)
        kept = snapshot(model, optimizer)
        expected = steps(model, optimizer, 3)
        other = net()
        again = make(other)
        steps(other, again, 5)
        restore(kept, other, again)
        assert all(torch.equal(*pair) for pair in zip(steps(other, again, 3), expected, strict=True))
        assert all(
            torch.equal(*pair)
            for pair in zip(other.state_dict().values(), model.state_dict().values(), strict=True)
        )


def test_a_snapshot_is_a_copy() -> None:
    model = net()
    optimizer = OPTIMIZERS[0](model)
    kept = snapshot(model, optimizer)
    before = copy.deepcopy(dict(kept.tensors))
    with torch.random.fork_rng():
        steps(model, optimizer, 1)
    assert all(torch.equal(kept.tensors[name], value) for name, value in before.items())


def test_a_snapshot_of_another_network_is_refused() -> None:
    model, other = net(), nn.Sequential(nn.Linear(4, 5))
    kept = snapshot(model, OPTIMIZERS[0](model))
    with pytest.raises(CheckpointError, match="another network"):
        restore(kept, other, OPTIMIZERS[0](other))


def test_all_random_generators_go_on_where_they_were() -> None:
    """Augmentation may draw from Python's and NumPy's too; half a pair of normal numbers is kept."""
    model = net()
    optimizer = OPTIMIZERS[0](model)
    numpys = np.random.get_state()  # noqa: NPY002
    before = random.getstate(), numpys, torch.get_rng_state()
    try:
        random.seed(3)
        np.random.seed(4)  # noqa: NPY002
        random.gauss(0, 1), np.random.normal()  # noqa: NPY002
        kept = snapshot(model, optimizer)

        def draws() -> list[float]:
            numpys = np.random.normal(), np.random.rand()  # noqa: NPY002
            return [random.gauss(0, 1), random.random(), *numpys, float(torch.rand(1))]

        expected = draws()
        draws()
        restore(Entry(json.loads(json.dumps(kept.facts)), dict(kept.tensors)), model, optimizer)
        assert draws() == expected
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
