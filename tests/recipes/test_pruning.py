from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateur as sec
from secateur.errors import BudgetError, UsageError, VerificationError
from secateur.recipes import Recipe, Training, prune
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


def test_with_its_optimizer_the_network_itself_is_cut(net: nn.Sequential, example: Tensor) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    net(example).sum().backward()
    optimizer.step()
    weight = net[0].weight
    result = prune(net, example, sec.Budget(channels=0.5), "magnitude", Training(optimizer=optimizer))
    assert result.model is net
    assert net[0].weight is weight
    assert sec.cost(net, example) == result.cost_after
    net(example).sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].shape == weight.shape


def test_views_serve_as_example_inputs(net: nn.Sequential, batches: list[Batch]) -> None:
    small = prune(net, batches[0][0][:2], sec.Budget(channels=0.5)).model
    assert isinstance(small, nn.Sequential)
    assert sum((small[0].out_channels, small[3].out_channels, small[7].out_features)) == 18


def test_uniform_takes_the_same_share_from_every_group(net: nn.Sequential, example: Tensor) -> None:
    recipe = Recipe.preset("one-shot", allocation="uniform", criterion="magnitude")
    result = prune(net, example, sec.Budget(channels=0.5), recipe=recipe)
    widths = [result.model[0].out_channels, result.model[3].out_channels, result.model[7].out_features]
    assert widths == [4, 6, 8]


def test_the_recipe_by_its_name_trains_a_copy(net: nn.Module, batches: list[Batch], example: Tensor) -> None:
    before = copy.deepcopy(net.state_dict())
    result = prune(net, example, sec.Budget(macs=0.5), batches=batches, recipe="default")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert result.ok
    assert result.curves is not None
    assert len(result.fits[-1].history) == 10
    assert sec.cost(result.model, example) == result.cost_after


def test_the_plan_of_several_cuts_is_in_channels_of_the_original(
    net: nn.Module, batches: list[Batch], example: Tensor
) -> None:
    recipe = Recipe.preset("one-shot", steps=3)
    result = prune(net, example, sec.Budget(channels=0.5), batches=batches, recipe=recipe)
    assert len(result.cuts) == 3
    assert result.plan.channels_removed == sum(cut.plan.channels_removed for cut in result.cuts) == 18
    small = sec.apply_plan(net, result.plan)
    assert result.plan.cost_after == result.cost_after
    ours, theirs = result.model.state_dict(), small.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_budget_that_is_met_makes_no_cut_and_says_so(net: nn.Module, example: Tensor) -> None:
    result = prune(net, example, sec.Budget(channels=36))
    assert (result.cuts, result.plan.keep) == ((), {})
    assert result.ok
    assert "removed 0 of 36 prunable channels in 0 cuts" in str(result)


def test_the_network_stays_where_it_is_and_in_its_precision(
    net: nn.Module, batches: list[Batch], example: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.training.process_group.has_bf16_units", lambda _: True)
    seen: list[torch.dtype] = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return cross_entropy(outputs, targets)

    recipe = Recipe.preset("plain", steps=1, finetune={"epochs": 1})
    prune(net, example, sec.Budget(macs=0.5), None, batches, loss_fn, recipe)
    assert set(seen) == {torch.float32}


def test_cross_entropy_is_the_loss_if_none_is_given(
    net: nn.Module, batches: list[Batch], example: Tensor
) -> None:
    budget = sec.Budget(channels=0.5)
    plain = prune(net, example, budget, batches=batches)
    given = prune(net, example, budget, batches=batches, loss_fn=cross_entropy)
    assert plain.plan == given.plan


def test_options_reach_the_plan(net: nn.Sequential, example: Tensor) -> None:
    widths = {"ignore": ["3"], "multiple_of": 4, "min_channels": 8}
    recipe = Recipe.preset("one-shot", widths=widths)
    result = prune(net, example, sec.Budget(channels=0.6), "magnitude", recipe=recipe)
    assert result.model[3].out_channels == 12
    assert result.model[7].out_features % 4 == 0
    assert min(result.model[0].out_channels, result.model[7].out_features) >= 8


def test_what_is_wrong_is_said(net: nn.Module, example: Tensor) -> None:
    with pytest.raises(UsageError, match="no criterion"):
        prune(net, example, sec.Budget(macs=0.5), "tailor")
    with pytest.raises(UsageError, match="no batches, which criterion 'taylor' need"):
        prune(net, example, sec.Budget(macs=0.5), "taylor")
    with pytest.raises(UsageError, match="allocation='curves' and reconstruct=True and fine-tuning need"):
        prune(net, example, sec.Budget(macs=0.5), recipe="default")
    with pytest.raises(UsageError, match="no recipe is named 'stew'; choose one of default, plain, one-shot"):
        prune(net, example, sec.Budget(macs=0.5), recipe="stew")
    with pytest.raises(BudgetError, match="least possible"):
        prune(net, example, sec.Budget(macs=1), "magnitude")


def test_a_cut_that_cannot_be_proved_is_not_made(
    net: nn.Module, example: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Expectation, "check", lambda *_: Verification(0.5, 1e-4, 6, 3))
    before = sec.cost(net, example)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(VerificationError, match="left as it was"):
        prune(net, example, sec.Budget(macs=0.5), "magnitude", Training(optimizer=optimizer))
    assert sec.cost(net, example) == before


def test_an_optimizer_that_would_train_nothing_is_refused(net: nn.Sequential, example: Tensor) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    before = sec.cost(net, example)
    with pytest.raises(UsageError, match="contains none of the parameters of Sequential"):
        prune(net, example, sec.Budget(macs=0.5), "magnitude", Training(optimizer=optimizer))
    assert sec.cost(net, example) == before
