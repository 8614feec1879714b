"""Recipes that remove residual branches, in one cut and in several, with training between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.budget import Budget
from secateur.errors import UsageError
from secateur.network_cost import cost
from secateur.plan import PruningPlan
from secateur.recipes import PruneResult, Recipe, prune
from secateur.recipes.state import RecipeState
from tests.graph.depth_networks import Basic, Nested, stack


def network() -> nn.Module:
    torch.manual_seed(0)
    return stack(Basic(8, 12), Basic(8, 16), Nested(8, 6))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(48, 3, 8, 8, generator=generator)
    return list(zip(images.split(16), (images[:, 0].mean((1, 2)) > 0).long().split(16), strict=True))


def pruned(depth: str, optimizer: torch.optim.Optimizer | None = None, **changes: Any) -> PruneResult:
    data = batches()
    recipe = Recipe.preset("default", widths={"depth": depth}, finetune={"epochs": 1}, **changes)
    return prune(
        network(), data[0][0][:2], Budget(macs=0.5), batches=data, loss_fn=F.cross_entropy, recipe=recipe
    )


WAYS: dict[str, dict[str, Any]] = {
    "once": {},
    "curves in steps": {"steps": 2},
    "scores in steps": {"steps": 2, "allocation": "global"},
    "channels per step": {"channels_per_step": 12, "allocation": "global", "between": {"epochs": 1}},
}
QUICK = {"once": "only", "curves in steps": "auto", "scores in steps": "auto", "channels per step": "only"}
"""Every way and both settings of depth once; the slow tests try all pairs."""


@pytest.mark.parametrize(
    ("depth", "changes"),
    [
        pytest.param(
            depth, changes, id=f"{way}-{depth}", marks=[] if depth == QUICK[way] else [pytest.mark.slow]
        )
        for way, changes in WAYS.items()
        for depth in ("auto", "only")
    ],
)
def test_every_cut_is_verified_and_the_budget_is_met(depth: str, changes: dict[str, Any]) -> None:
    result = pruned(depth, **changes)
    assert result.ok
    assert result.cost_after == cost(result.model, batches()[0][0][:2])
    assert result.cost_after.macs <= 0.5 * result.cost_before.macs
    assert result.plan.cost_after == result.cost_after
    if depth == "only":
        assert result.plan.without
        assert not result.plan.keep
    assert len(result.fits) >= 1
    for parameter in result.model.parameters():
        assert torch.isfinite(parameter).all()


def test_the_result_names_what_was_removed() -> None:
    result = pruned("only")
    count = result.plan.branches_removed
    assert f"and {count} residual branch{'es' * (count > 1)} in 1 cut" in str(result)
    assert f"{count} residual branch" in str(result.cuts[0])


def test_a_resumed_run_repeats_the_removal_of_branches() -> None:
    result = pruned("only", steps=2)
    state = RecipeState(result.graph, cuts=list(result.cuts), step=2, last=True)
    model = network()
    again = RecipeState.repeated(state.to_dict(), model, result.plan.graph)
    assert [cut.plan for cut in again.cuts] == [cut.plan for cut in result.cuts]
    assert again.graph.cost() == cost(model, batches()[0][0][:2]) == result.cost_after


def test_the_optimizer_forgets_what_was_removed() -> None:
    net, data = network(), batches()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for inputs, targets in data:
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    recipe = Recipe.preset("default", widths={"depth": "only"}, finetune={"epochs": 1})
    from secateur.recipes import Training

    result = prune(
        net,
        data[0][0][:2],
        Budget(macs=0.5),
        batches=Training(data, optimizer=optimizer),
        loss_fn=F.cross_entropy,
        recipe=recipe,
    )
    kept = {id(parameter) for parameter in result.model.parameters()}
    assert result.model is net
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == kept
    assert {id(parameter) for parameter in optimizer.state} <= kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost_regularization": {"quantity": "macs"}}, "compares scores by cost already"),
        ({"allocation": "uniform"}, "allocation 'uniform' takes the same share of every group"),
        ({"allocation": "global", "normalize": "l1"}, "normalize: no effect while widths.depth is 'auto'"),
        ({"allocation": "global", "criterion": "magnitude"}, "'magnitude' does not score residual branches"),
        ({"criterion": "block-influence"}, "'block-influence' scores residual branches only"),
        ({"widths": {"depth": "off", "uniform_depth": True}}, "uniform_depth has no effect"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune(
            network(),
            batches()[0][0][:2],
            Budget(macs=0.5),
            batches=batches(),
            recipe=Recipe.preset("default", **{"widths": {"depth": "auto"}, **changes}),
        )


def test_a_network_without_branches_is_pruned_by_channels() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    data = [(torch.randn(16, 4), torch.randint(0, 2, (16,)))]
    recipe = Recipe.preset("plain", steps=1, widths={"depth": "auto"}, finetune={"epochs": 0})
    result = prune(net, data[0][0][:2], Budget(macs=0.5), batches=data, recipe=recipe)
    assert result.plan == PruningPlan(result.plan.graph, dict(result.plan.keep))
    assert result.plan.channels_removed == 4
