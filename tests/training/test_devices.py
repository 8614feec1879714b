from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.training import devices
from secateur.training.devices import arranged, laid_out, make_machine
from secateur.training.settings import DeviceSettings

PLAIN = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
POINTWISE = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize("units", [False, True])
def test_auto_follows_the_device(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_bf16_units", lambda _: units)
    machine = make_machine(DeviceSettings(accelerator="cpu"))
    with machine.fabric.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (torch.bfloat16 if units else torch.float32)
    assert machine.lays_channels_last(PLAIN) is units
    assert machine.lays_channels_last(POINTWISE) is True
    assert machine.lays_channels_last(nn.Linear(2, 2)) is False


@pytest.mark.parametrize("wish", ["yes", "no"])
def test_what_is_asked_for_is_done(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_bf16_units", lambda _: True)
    machine = make_machine(DeviceSettings(accelerator="cpu", precision="float32", channels_last=wish))
    assert machine.lays_channels_last(PLAIN) is machine.lays_channels_last(POINTWISE) is (wish == "yes")
    with machine.fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_only_pictures_are_laid_out() -> None:
    assert arranged(torch.zeros(2, 3, 4, 4), True).is_contiguous(memory_format=torch.channels_last)
    assert arranged(torch.zeros(2, 3, 4, 4), False).is_contiguous()
    assert arranged(torch.zeros(2, 3), True).is_contiguous()


def test_weights_are_contiguous_again_afterwards_and_still_themselves() -> None:
    model = nn.Conv2d(3, 4, 3)
    weight, values = model.weight, model.weight.detach().clone()
    with laid_out(model, channels_last=True):
        assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.weight is weight
    assert weight.is_contiguous()
    assert torch.equal(weight, values)
