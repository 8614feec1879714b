from __future__ import annotations

import pytest
import torch

import secateur as sec
from secateur.recipes import Recipe
from secateur.training.settings import FitSettings
from tests.recipes.running import in_place


@pytest.mark.slow
def test_a_network_with_auxiliary_heads_is_cut_and_trained_with_them() -> None:
    model = sec.build("googlenet", classes=3)
    inputs = torch.randn(4, 3, 64, 64)
    batches = [(inputs, torch.tensor([0, 1, 2, 1]))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = Recipe.preset("plain", steps=2, finetune=FitSettings(epochs=1))
    result = in_place(model, inputs[:2], sec.Budget(macs=0.5), batches, settings)
    assert all(cut.verification.ok for cut in result.cuts)
    assert result.cost_after.macs <= result.cost_before.macs / 2
    after = model.state_dict()
    for name in ("fc.bias", "aux1.fc2.bias", "aux2.fc2.bias"):
        assert not torch.equal(after[name], before[name])
    assert len(model.train()(inputs)) == 3
