from __future__ import annotations

import copy
import json
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.recipes import IterativeResult, Measured, PruneSettings, prune_iteratively, work
from secateur.training.context import RunContext
from secateur.training.events import Event
from secateur.training.settings import FitSettings

CURVES = PruneSettings(
    steps=1, allocate="curves", between=FitSettings(epochs=0), after=FitSettings(epochs=0), curve_batches=2
)


def cut_to(
    share: float, net: nn.Module, example: Tensor, batches: list, measured: Measured | None = None
) -> tuple[IterativeResult, list[Measured]]:
    heard: list[Event] = []
    result = prune_iteratively(
        copy.deepcopy(net),
        example,
        sec.Budget(channels=share),
        batches,
        CURVES,
        measured=measured,
        context=RunContext(listener=heard.append),
    )
    return result, [event for event in heard if isinstance(event, Measured)]


def test_another_budget_measures_nothing_and_comes_to_the_same(
    net: nn.Module, example: Tensor, batches: list
) -> None:
    first, _ = cut_to(0.75, net, example, batches)
    assert first.measured is not None
    kept = Measured.from_dict(json.loads(json.dumps(first.measured.to_dict())))
    with patch.object(work, "score", side_effect=AssertionError("scored again")):
        again, told = cut_to(0.5, net, example, batches, kept)
    fresh, _ = cut_to(0.5, net, example, batches)
    assert told == []
    assert again.cuts[0].plan.keep == fresh.cuts[0].plan.keep
    assert again.measured == kept


def test_what_is_measured_is_told_group_by_group_and_can_be_taken_up_halfway(
    net: nn.Module, example: Tensor, batches: list
) -> None:
    whole, told = cut_to(0.5, net, example, batches)
    groups = len(whole.graph.prunable)
    assert [len(event.curves or ()) for event in told] == list(range(groups + 1))
    rest, told_again = cut_to(0.5, net, example, batches, told[1])
    assert [len(event.curves or ()) for event in told_again] == list(range(2, groups + 1))
    assert rest.measured == whole.measured


@pytest.mark.parametrize("what", ["weights", "criterion"])
def test_measurements_of_something_else_are_refused(
    net: nn.Module, example: Tensor, batches: list, what: str
) -> None:
    first, _ = cut_to(0.75, net, example, batches)
    assert first.measured is not None
    measured = first.measured
    if what == "weights":
        with torch.no_grad():
            next(net.parameters()).add_(1e-6)
    else:
        other = sec.Scores("taylor-squared", dict(measured.scores), measured.scores.unscored)
        measured = Measured(measured.network, other, measured.curves)
    with pytest.raises(sec.UsageError, match=what if what == "weights" else "taylor-squared"):
        cut_to(0.5, net, example, batches, measured)


@pytest.mark.parametrize("data", [{}, {"network": "a", "scores": [], "curves": None}, {"curves": 3}])
def test_foreign_data_is_refused(data: dict) -> None:
    with pytest.raises(sec.UsageError):
        Measured.from_dict(data)
