"""Weights that the code reads and writes through ``.data``, as moving averages of encoders do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sec

X = torch.randn(4, 6)


class Momentum(nn.Module):
    """An encoder, and one whose weights are a moving average of the first one's."""

    def __init__(self, update: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.query, self.key = (
            nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(2)
        )
        self.key.requires_grad_(False)
        self.update = update

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            if self.training:
                for new, old in zip(self.query.parameters(), self.key.parameters(), strict=True):
                    self.update(new, old)
            target = self.key(x)
        return self.query(x), target


def assigned(new: Tensor, old: Tensor) -> None:
    old.data = old.data * 0.9 + new.data * 0.1


def in_place(new: Tensor, old: Tensor) -> None:
    old.data.mul_(0.9).add_(new.data * 0.1)


def copied(new: Tensor, old: Tensor) -> None:
    old.data.copy_(torch.lerp(old.data, new.data, 0.1))


@pytest.mark.parametrize("update", [assigned, in_place, copied])
def test_a_moving_average_through_data_couples_both_encoders(
    update: Callable[[Tensor, Tensor], object], capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = Momentum(update)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    plan = sec.plan_from(sec.trace(net, X), {"query.0": [0, 3]})
    small = sec.apply_plan(net, plan)
    check = sec.verify(net, small, plan, X)
    assert check.ok, check
    assert check.modes == ("evaluation", "training")
    assert check.precision == "float64"
    assert small.key[0].out_features == 14
    assert all(torch.equal(found, before[name]) for name, found in net.state_dict().items())
    small.train()(X)
    net.train()(X)
    kept = [row for row in range(16) if row not in (0, 3)]
    torch.testing.assert_close(small.key[0].weight, net.key[0].weight[kept])
    assert "".join(capfd.readouterr()) == ""


class Fixed(nn.Module):
    """Reads the data of its weight in every pass, and assigns that of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 3
        x.data = x.data * 2
        hidden = nn.functional.linear(x, self.first.weight.data, self.first.bias.data)
        return self.last(torch.relu(hidden))


def test_data_that_evaluation_reads() -> None:
    net = Fixed()
    plan = sec.plan_from(sec.trace(net, X), {"first": [0, 3]})
    small = sec.apply_plan(net, plan)
    assert sec.verify(net, small, plan, X).ok


def test_a_trial_that_fails_on_fake_tensors_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    net, mask = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), torch.ones(16)
    net[1].register_full_backward_hook(lambda _, inputs, __: (inputs[0] * mask,))
    reason = sec.trace(net, X)["0"].reason
    assert reason is not None
    assert "the training-mode forward pass fails" in reason
    assert "".join(capfd.readouterr()) == ""
