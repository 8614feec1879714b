from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateur as sec
from secateur.errors import BudgetError, UsageError, VerificationError
from secateur.recipes import prune
from secateur.verification import Expectation, Verification

Batch = tuple[Tensor, Tensor]


def test_the_one_call_meets_the_budget_and_leaves_the_network_alone(
    net: nn.Module, batches: list[Batch], example: Tensor
) -> None:
    before = copy.deepcopy(net.state_dict())
    result = prune(net, example, sec.Budget(macs=0.5), batches=batches, loss_fn=cross_entropy)
    assert result.verification.ok
    assert result.cost_after.macs <= result.cost_before.macs / 2
    assert sec.cost(result.model, example) == result.cost_after
    assert sec.cost(net, example) == result.cost_before
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert str(result.verification) in str(result)
    cross_entropy(result.model(batches[0][0]), batches[0][1]).backward()


def test_in_place_the_network_itself_and_its_optimizer_are_cut(net: nn.Sequential, example: Tensor) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    net(example).sum().backward()
    optimizer.step()
    weight = net[0].weight
    result = prune(net, example, sec.Budget(channels=0.5), "magnitude", optimizer=optimizer, inplace=True)
    assert result.model is net
    assert net[0].weight is weight
    assert sec.cost(net, example) == result.cost_after
    net(example).sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].shape == weight.shape


def test_views_serve_as_example_inputs(net: nn.Sequential, batches: list[Batch]) -> None:
    prune(net, batches[0][0][:2], sec.Budget(channels=0.5), "magnitude", inplace=True)
    assert sum((net[0].out_channels, net[3].out_channels, net[7].out_features)) == 18


def test_the_optimizer_moves_over_to_the_copy(net: nn.Sequential, example: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    result = prune(net, example, sec.Budget(channels=0.5), "magnitude", optimizer=optimizer)
    assert isinstance(result.model, nn.Sequential)
    before = result.model[0].weight.detach().clone()
    result.model(example).square().sum().backward()
    optimizer.step()
    assert not torch.equal(result.model[0].weight, before)
    assert net[0].weight.grad is None


def test_uniform_takes_the_same_share_from_every_group(net: nn.Sequential, example: Tensor) -> None:
    result = prune(net, example, sec.Budget(channels=0.5), "magnitude", allocate="uniform")
    widths = [result.model[0].out_channels, result.model[3].out_channels, result.model[7].out_features]
    assert widths == [4, 6, 8]


def test_cross_entropy_is_the_loss_if_none_is_given(
    net: nn.Module, batches: list[Batch], example: Tensor
) -> None:
    budget = sec.Budget(channels=0.5)
    plain = prune(net, example, budget, batches=batches)
    given = prune(net, example, budget, batches=batches, loss_fn=cross_entropy)
    assert plain.plan == given.plan


def test_options_reach_the_plan(net: nn.Sequential, example: Tensor) -> None:
    result = prune(
        net, example, sec.Budget(channels=0.6), "magnitude", ignore=["3"], round_to=4, min_channels=8
    )
    assert result.model[3].out_channels == 12
    assert result.model[7].out_features % 4 == 0
    assert min(result.model[0].out_channels, result.model[7].out_features) >= 8


def test_what_is_wrong_is_said(net: nn.Module, example: Tensor) -> None:
    with pytest.raises(UsageError, match="no criterion"):
        prune(net, example, sec.Budget(macs=0.5), "tailor")
    with pytest.raises(UsageError, match="needs batches"):
        prune(net, example, sec.Budget(macs=0.5))
    with pytest.raises(BudgetError, match="least possible"):
        prune(net, example, sec.Budget(macs=1), "magnitude")


def test_a_cut_that_cannot_be_proved_is_not_made(
    net: nn.Module, example: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Expectation, "check", lambda *_: Verification(0.5, 1e-4, 6, 3))
    before = sec.cost(net, example)
    with pytest.raises(VerificationError, match="left as it was"):
        prune(net, example, sec.Budget(macs=0.5), "magnitude", inplace=True)
    assert sec.cost(net, example) == before


@pytest.mark.parametrize("inplace", [True, False])
def test_an_optimizer_that_would_train_nothing_is_refused(
    net: nn.Sequential, example: Tensor, inplace: bool
) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    prune(net, example, sec.Budget(macs=0.5), "magnitude", optimizer=optimizer)
    before = sec.cost(net, example)
    with pytest.raises(UsageError, match="holds none of the parameters of Sequential"):
        prune(net, example, sec.Budget(macs=0.5), "magnitude", optimizer=optimizer, inplace=inplace)
    assert sec.cost(net, example) == before
