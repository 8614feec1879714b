from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import UsageError
from secateur.recovery import recalibrate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.5))


def test_statistics_are_those_of_all_values() -> None:
    net, x = network().double(), torch.randn(11, 3, 8, 8, dtype=torch.float64)
    assert recalibrate(net, x.split(4)) == 1
    with torch.no_grad():
        values = net[0](x).transpose(0, 1).flatten(1)
    assert torch.allclose(net[1].running_mean, values.mean(1))
    assert torch.allclose(net[1].running_var, values.var(1))


def test_nothing_but_statistics_changes() -> None:
    net = network()
    net.train()
    net[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    recalibrate(net, [(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), None)])
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"1.running_mean", "1.running_var"}
    assert (net.training, net[1].training, net[1].momentum) == (True, False, 0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not net[1]._forward_pre_hooks


def test_a_failure_leaves_the_network_as_it_was() -> None:
    net = network().eval()
    with pytest.raises(RuntimeError):
        recalibrate(net, [torch.zeros(2, 5, 8, 8)])
    assert (net[1].training, net[1].momentum, len(net[1]._forward_pre_hooks)) == (False, 0.3, 0)


def test_no_batches_are_refused_but_no_norms_are_fine() -> None:
    with pytest.raises(UsageError, match="no batches"):
        recalibrate(network(), [])
    assert recalibrate(nn.Sequential(nn.Linear(2, 2)), []) == 0


def test_a_batch_of_one_value_for_each_channel_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(UsageError, match=r"in '1' \(BatchNorm1d\): .* at least two examples in every batch"):
        recalibrate(net, [torch.randn(2, 3), torch.randn(1, 3)])
