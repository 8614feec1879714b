from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from secateur.errors import DataError
from secateur.training.evaluate import evaluate


def test_uneven_batches_count_by_their_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(11, 4, generator=generator), torch.randint(4, (11,), generator=generator)
    batches = list(zip(inputs.split(4), targets.split(4), strict=True))
    result = evaluate(nn.Identity(), batches)
    assert result.examples == 11
    assert result.metric == pytest.approx((inputs.argmax(1) == targets).double().mean().item())
    assert result.loss == pytest.approx(cross_entropy(inputs, targets).item(), rel=1e-5)


def test_the_network_is_judged_in_evaluation_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3))
    model[1].eval()
    inputs = torch.eye(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert evaluate(model, [(inputs, torch.arange(3))]).metric == 1
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[1].training


def test_no_examples_are_an_error() -> None:
    with pytest.raises(DataError, match="no examples"):
        evaluate(nn.Identity(), [])
