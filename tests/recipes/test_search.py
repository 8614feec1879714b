from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sec
from secateur.errors import BudgetError, UsageError
from secateur.recipes import SearchResult, smallest_within


def searched(border: float, tries: int, least: float = 0.0) -> tuple[SearchResult, list[float]]:
    """A search over networks that are good down to a border, and cannot be made below a least share."""
    asked: list[float] = []

    def attempt(model: nn.Module, share: float) -> nn.Module:
        asked.append(share)
        if share < least:
            raise BudgetError("too small")
        with torch.no_grad():
            model.weight.fill_(share)
        return model

    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    result = smallest_within(
        net, 1.0, attempt, lambda model: 5.0 if model.weight.item() >= border else 3.9, tries=tries
    )
    assert net.weight.item() == 1.0
    return result, asked


@given(border=st.floats(0.01, 0.99), tries=st.integers(1, 12), least=st.floats(0.0, 0.5))
def test_the_smallest_that_holds_is_handed_over(border: float, tries: int, least: float) -> None:
    result, asked = searched(border, tries, least)
    limit = max(border, least)
    held = [share for share in (1.0, *asked) if torch.tensor(share).item() >= limit]
    assert result.best.share == min(held)
    assert result.model.weight.item() == pytest.approx(min(held))
    assert len(asked) <= tries
    assert all(point.held == (point.share in held) for point in result.path)
    if tries == 12:  # then the border is known closely
        assert result.best.share <= 1.05**2 * limit or result.best.share == min(asked)


def test_a_share_that_cannot_be_reached_is_too_bad() -> None:
    result, asked = searched(0.0, 3, least=0.4)
    assert [point.score for point in result.path] == [5.0, 5.0, -math.inf, -math.inf]
    assert [round(share, 3) for share in asked] == [0.5, 0.25, 0.354]
    assert "cannot be reached" in str(result.path[2])


@pytest.mark.parametrize(("drop", "tries"), [(-1.0, 3), (math.nan, 3), (1.0, 0)])
def test_senseless_searches_are_refused(drop: float, tries: int) -> None:
    with pytest.raises(UsageError, match="allowed drop"):
        smallest_within(nn.Identity(), drop, lambda net, share: net, lambda net: 1.0, tries=tries)


def test_with_a_recipe(net: nn.Module, example: torch.Tensor, batches: list) -> None:
    recipe = sec.Recipe.preset("plain", steps=1, finetune={"epochs": 1})

    def attempt(model: nn.Module, share: float) -> nn.Module:
        return sec.prune(model, example, sec.Budget(macs=share), None, batches, recipe=recipe).model

    result = smallest_within(net, 1e9, attempt, lambda model: -sec.cost(model, example).macs, tries=2)
    assert [point.share for point in result.path] == [1.0, 0.5, 0.25]
    assert sec.cost(result.model, example).macs <= 0.25 * sec.cost(net, example).macs
