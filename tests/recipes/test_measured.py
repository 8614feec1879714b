from __future__ import annotations

import copy
import json
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.budget import WidthCurves
from secateur.criteria import Scores
from secateur.recipes import Measured, PruneResult, Recipe, fingerprint, measuring
from tests.recipes.running import in_place
from tests.recorder import Recorder

CURVES = Recipe.preset("one-shot", allocation="curves", curve_batches=2)


def cut_to(
    share: float, net: nn.Module, example: Tensor, batches: list, measured: Measured | None = None
) -> tuple[PruneResult, list[Measured]]:
    heard = Recorder()
    result = in_place(
        copy.deepcopy(net),
        example,
        sec.Budget(channels=share),
        batches,
        CURVES,
        measured=measured,
        callbacks=[heard],
    )
    scores = heard.of(Scores)[0] if heard.of(Scores) else result.scores
    curves = [None, *heard.of(WidthCurves)] if heard.of(Scores) else heard.of(WidthCurves)
    return result, [Measured(fingerprint(net), scores, found) for found in curves]


def measured_by(result: PruneResult, net: nn.Module) -> Measured:
    return Measured(fingerprint(net), result.scores, result.curves)


def test_another_budget_measures_nothing_and_comes_to_the_same(
    net: nn.Module, example: Tensor, batches: list
) -> None:
    first, _ = cut_to(0.75, net, example, batches)
    kept = Measured.from_dict(json.loads(json.dumps(measured_by(first, net).to_dict())))
    with patch.object(measuring, "score", side_effect=AssertionError("scored again")):
        again, told = cut_to(0.5, net, example, batches, kept)
    fresh, _ = cut_to(0.5, net, example, batches)
    assert told == []
    assert again.cuts[0].plan.keep == fresh.cuts[0].plan.keep
    assert measured_by(again, net) == kept


def test_what_is_measured_is_reported_group_by_group_and_can_be_resumed_halfway(
    net: nn.Module, example: Tensor, batches: list
) -> None:
    whole, told = cut_to(0.5, net, example, batches)
    groups = len(whole.graph.prunable)
    assert [len(event.curves or ()) for event in told] == list(range(groups + 1))
    rest, told_again = cut_to(0.5, net, example, batches, told[1])
    assert [len(event.curves or ()) for event in told_again] == list(range(2, groups + 1))
    assert measured_by(rest, net) == measured_by(whole, net)


@pytest.mark.parametrize("what", ["weights", "criterion"])
def test_measurements_of_something_else_are_refused(
    net: nn.Module, example: Tensor, batches: list, what: str
) -> None:
    first, _ = cut_to(0.75, net, example, batches)
    measured = measured_by(first, net)
    if what == "weights":
        with torch.no_grad():
            next(net.parameters()).add_(1e-6)
    else:
        other = Scores("taylor-squared", dict(measured.scores), measured.scores.unscored)
        measured = Measured(measured.network, other, measured.curves)
    with pytest.raises(sec.UsageError, match=what if what == "weights" else "taylor-squared"):
        cut_to(0.5, net, example, batches, measured)


@pytest.mark.parametrize("data", [{}, {"network": "a", "scores": [], "curves": None}, {"curves": 3}])
def test_foreign_data_is_refused(data: dict) -> None:
    with pytest.raises(sec.UsageError):
        Measured.from_dict(data)
