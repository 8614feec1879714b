from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.training import process_group
from secateur.training.context import RunContext
from secateur.training.loop import weights_channels_last
from secateur.training.settings import DeviceSettings

PLAIN = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
POINTWISE = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize("units", [False, True])
def test_auto_follows_the_device(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "has_bf16_units", lambda _: units)
    context = RunContext(DeviceSettings(accelerator="cpu"))
    with context.fabric.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (torch.bfloat16 if units else torch.float32)
    assert context.uses_channels_last(PLAIN) is units
    assert context.uses_channels_last(POINTWISE) is True
    assert context.uses_channels_last(nn.Linear(2, 2)) is False


@pytest.mark.parametrize("wish", ["yes", "no"])
def test_what_is_asked_for_is_done(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "has_bf16_units", lambda _: True)
    context = RunContext(DeviceSettings(accelerator="cpu", precision="float32", channels_last=wish))
    assert context.uses_channels_last(PLAIN) is context.uses_channels_last(POINTWISE) is (wish == "yes")
    with context.fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_a_context_for_a_network_computes_where_it_is_in_float32() -> None:
    context = RunContext.of(PLAIN)
    assert context.device == torch.device("cpu")
    assert not context.uses_channels_last(POINTWISE)
    with context.fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_weights_are_contiguous_again_afterwards_and_still_themselves() -> None:
    model = nn.Conv2d(3, 4, 3)
    weight, values = model.weight, model.weight.detach().clone()
    with weights_channels_last(model):
        assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.weight is weight
    assert weight.is_contiguous()
    assert torch.equal(weight, values)
