from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from secateur.ablation import Ablation, compare_ranking
from secateur.criteria import Scores
from secateur.errors import UsageError

TRUTH = Ablation(
    {"a": torch.tensor([0.4, -0.1, 0.3, -0.2]), "b": torch.tensor([4.0, 1.0, -2.0, 3.0, 5.0])}, 1.0, 8
)
GUESS = Scores(
    "guess", {"a": torch.tensor([9.0, 1.0, 2.0, 3.0]), "b": torch.tensor([0.4, 0.1, 0.3, 0.2, 0.5])}
)


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def spearman(one: list[float], other: list[float]) -> float:
    """Of values without ties: 1 - 6 Σ d² / (n (n² - 1))."""
    distance = ((ranks(one) - ranks(other)) ** 2).sum()
    return 1 - 6 * distance / (len(one) * (len(one) ** 2 - 1))


def test_rank_correlation_by_the_closed_form() -> None:
    found = compare_ranking(TRUTH, GUESS)
    truth = {name: TRUTH[name].abs().tolist() for name in TRUTH}
    guess = {name: GUESS[name].tolist() for name in GUESS}
    for name in ("a", "b"):
        assert found.groups[name] == pytest.approx(spearman(truth[name], guess[name]))
    assert found.per_group == pytest.approx(sum(found.groups.values()) / 2)
    every = truth["a"] + truth["b"]
    assert found.raw == pytest.approx(spearman(every, guess["a"] + guess["b"]))
    levelled = [value / math.hypot(*guess[name]) for name in ("a", "b") for value in guess[name]]
    assert found.normalized == pytest.approx(spearman(every, levelled))
    assert found.raw < found.normalized


def test_channels_that_are_not_measured_yet_do_not_count() -> None:
    part = Ablation({"a": torch.tensor([0.4, -0.1, 0.3, -0.2, math.nan])}, 1.0, 8)
    scores = Scores("guess", {"a": torch.tensor([9.0, 1.0, 2.0, 3.0, 99.0])})
    assert compare_ranking(part, scores).groups["a"] == pytest.approx(0.8)


def test_groups_where_ranks_mean_nothing_are_left_out_of_the_mean() -> None:
    truth = Ablation({"a": TRUTH["a"], "flat": torch.ones(4), "two": torch.ones(2)}, 1.0, 8)
    scores = Scores(
        "guess",
        {"a": GUESS["a"], "flat": torch.arange(4.0), "two": torch.arange(2.0), "other": torch.ones(3)},
    )
    found = compare_ranking(truth, scores)
    assert list(found.groups) == ["a"]
    assert found.per_group == found.groups["a"]


def test_nothing_in_common_and_other_widths_are_refused() -> None:
    with pytest.raises(UsageError, match="no group in common"):
        compare_ranking(TRUTH, Scores("guess", {"c": torch.ones(3)}))
    with pytest.raises(UsageError, match="4 channels, but 3 scores"):
        compare_ranking(TRUTH, Scores("guess", {"a": torch.ones(3)}))
