from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from secateur.jobs.profile import profile


class Slow(nn.Module):
    """Takes so many milliseconds, of which its child takes a part."""

    def __init__(self, own: float, child: nn.Module | None = None) -> None:
        super().__init__()
        self.own = own
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.own / 1e3)
        return x if self.child is None else self.child(self.child(x))


def test_a_module_is_charged_for_itself_and_not_for_its_children() -> None:
    net = Slow(20.0, Slow(30.0))
    found = profile({"net": net}, torch.ones(1), seconds=0)["net"]
    assert list(found.own_ms) == ["", "child"]
    # Sleep is never shorter; on a busy machine it is longer.
    assert 20 <= found.own_ms[""] < 20 + 25
    assert 60 <= found.own_ms["child"] < 60 + 50  # called twice


def test_the_sum_is_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    own = profile({"net": net}, torch.ones(1, 2), seconds=0)["net"].own_ms
    # Five modules read the clock at both ends, one second a reading: nine from the first to the last.
    assert sum(own.values()) == 9000.0
    assert own["0"] == own["1.0"] == own["1.1"] == 1000.0


def test_networks_are_left_as_they_were() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    profile({"one": net, "other": nn.ReLU()}, torch.randn(4, 3), seconds=0)
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_no_clock_survives_a_failure() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        profile({"net": net}, torch.ones(1, 2), seconds=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
