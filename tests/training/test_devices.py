from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.training import devices
from secateur.training.devices import Machine, laid_out, make_machine
from secateur.training.settings import DeviceSettings


@pytest.mark.parametrize("units", [False, True])
def test_auto_follows_the_device(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_bf16_units", lambda _: units)
    machine = make_machine(DeviceSettings(accelerator="cpu"))
    assert machine.channels_last is units
    with machine.fabric.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (torch.bfloat16 if units else torch.float32)


def test_what_is_asked_for_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_bf16_units", lambda _: True)
    settings = DeviceSettings(accelerator="cpu", precision="float32", channels_last="yes")
    machine = make_machine(settings)
    assert machine.channels_last
    with machine.fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_only_pictures_are_laid_out() -> None:
    machine = Machine(make_machine(DeviceSettings(accelerator="cpu")).fabric, channels_last=True)
    assert machine.place(torch.zeros(2, 3, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    assert machine.place(torch.zeros(2, 3)).is_contiguous()


def test_weights_are_contiguous_again_afterwards_and_still_themselves() -> None:
    model = nn.Conv2d(3, 4, 3)
    weight, values = model.weight, model.weight.detach().clone()
    with laid_out(model, channels_last=True):
        assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.weight is weight
    assert weight.is_contiguous()
    assert torch.equal(weight, values)
