from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.errors import VerificationError
from secateur.recipes import Cut, cutting
from secateur.verify import Verification


def test_a_cut_is_made_in_place_once_a_copy_is_proved(net: nn.Sequential, example: Tensor) -> None:
    plan = sec.plan_from(sec.trace(net, example), {"0": [1, 2], "7": [0]})
    expected = sec.apply_plan(net, plan)
    verification = cutting.cut(net, plan, example)
    assert verification.ok
    assert verification.channels_removed == 3
    for name, value in net.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


def test_nothing_is_cut_if_the_copy_is_wrong(
    net: nn.Sequential, example: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = sec.plan_from(sec.trace(net, example), {"0": [1, 2]})
    right = sec.apply_plan

    def wrong(model: nn.Module, plan: sec.PruningPlan, **options: object) -> nn.Module:
        smaller = right(copy.deepcopy(model), plan)
        with torch.no_grad():
            smaller[9].bias += 0.1
        return smaller

    monkeypatch.setattr(cutting, "apply_plan", wrong)
    with pytest.raises(VerificationError, match="DIFFERS.*left as it was"):
        cutting.cut(net, plan, example)
    assert net[0].out_channels == 8


def test_a_cut_reads_as_two_lines(net: nn.Sequential, example: Tensor) -> None:
    plan = sec.plan_from(sec.trace(net, example), {"0": [1, 2]})
    first, second = str(Cut(1, 4, plan, Verification(1e-7, 1e-4, 6, 2))).splitlines()
    assert first.startswith("cut 1/4: 2 channels, ")
    assert f"{plan.cost_before.macs:,} to {plan.cost_after.macs:,} MACs" in first
    assert second.strip().startswith("proof: the smaller network equals")
    assert str(Cut(3, None, plan, Verification(1e-7, 1e-4, 6, 2))).startswith("cut 3: ")
