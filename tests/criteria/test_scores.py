from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.criteria import Scores
from secateur.errors import UsageError

finite = st.floats(-1e6, 1e6, width=32)
values = st.dictionaries(
    st.text(min_size=1, max_size=8), st.lists(finite, min_size=1, max_size=6), max_size=4
)


@given(values, st.sampled_from(["none", "l2", "l1", "max", "min-max"]))
def test_they_survive_json_exactly(lists: dict[str, list[float]], how: str) -> None:
    scores = Scores("taylor", {name: torch.tensor(row) for name, row in lists.items()}, {"x!": "why"})
    scores = scores.normalized(how)
    back = Scores.from_dict(json.loads(json.dumps(scores.to_dict())))
    assert back == scores
    assert list(back) == list(lists)
    assert (back.criterion, back.normalization, dict(back.unscored)) == ("taylor", how, {"x!": "why"})
    assert all(torch.equal(back[name], scores[name]) for name in scores)


def test_they_are_float32_on_the_cpu_and_detached() -> None:
    scores = Scores("x", {"a": torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)})
    assert scores["a"].dtype is torch.float32
    assert not scores["a"].requires_grad


def test_nothing_that_is_handed_in_or_out_changes_them() -> None:
    given_values = torch.tensor([1.0, 2.0])
    scores = Scores("x", {"a": given_values})
    given_values.zero_()
    scores["a"].zero_()
    assert scores["a"].tolist() == [1.0, 2.0]
    with pytest.raises(TypeError):
        scores["a"] = given_values  # type: ignore[index]
    with pytest.raises(TypeError):
        scores.unscored["a"] = "no"  # type: ignore[index]
    with pytest.raises(TypeError):
        hash(scores)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_scores_that_are_not_finite_are_refused_with_group_and_criterion(bad: float) -> None:
    row = torch.tensor([1.0, bad], dtype=torch.float64)
    with pytest.raises(UsageError, match=r"1 of 2 obd scores of group 'layer1\.0' are NaN or infinite"):
        Scores("obd", {"layer1.0": row})


def test_a_matrix_of_scores_is_refused() -> None:
    with pytest.raises(UsageError, match=r"group 'a' have shape \(2, 2\); give one score per channel"):
        Scores("x", {"a": torch.zeros(2, 2)})


def test_a_group_without_scores_says_why() -> None:
    scores = Scores("bn-scale", {}, {"fc": "no batch normalisation scales its channels"})
    assert "fc" not in scores
    with pytest.raises(KeyError, match="no batch normalisation"):
        scores["fc"]
    with pytest.raises(KeyError, match="other"):
        scores["other"]


@pytest.mark.parametrize(
    "data", [{}, {"criterion": "x", "scores": [], "unscored": {}, "normalization": "none"}]
)
def test_foreign_data_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="no scores that"):
        Scores.from_dict(data)


def test_equality_looks_at_everything() -> None:
    row = {"a": torch.tensor([1.0])}
    scores = Scores("x", row)
    assert scores == Scores("x", row)
    assert scores != Scores("y", row)
    assert scores != Scores("x", row, {"b": "why"})
    assert scores != scores.normalized("l2")
    assert scores != Scores("x", {"a": torch.tensor([2.0])})
    assert scores != {"a": 1}


def test_printing_shows_every_group() -> None:
    rows: dict[str, Tensor] = {"features.0": torch.tensor([1.0, 2.0, 3.0]), "empty": torch.zeros(0)}
    text = str(Scores("taylor", rows, {"head": "nothing reads it"}))
    lines = text.splitlines()
    assert lines[0] == "taylor scores (raw)"
    assert lines[2].split() == ["features.0", "3", "1", "2", "3"]
    assert lines[3].split() == ["empty", "0", "0", "0", "0"]
    assert lines[4] == "head: not scored, nothing reads it"
    assert repr(Scores("taylor", rows)) == "Scores('taylor', 2 groups, 3 channels)"
