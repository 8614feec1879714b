from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.criteria.normalise import normalise
from secateur.errors import UsageError

SCORES = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8)
KINDS = ("l2", "l1", "max", "min-max", "none")


@given(SCORES)
def test_norms_are_one(scores: list[float]):
    values = {"a": torch.tensor(scores, dtype=torch.float64)}
    if not any(scores):
        for how in KINDS:
            assert normalise(values, how)["a"].tolist() == [0.0] * len(scores)
        return
    scaled = {how: normalise(values, how)["a"].numpy() for how in KINDS}
    assert np.linalg.norm(scaled["l2"]) == pytest.approx(1)
    assert np.abs(scaled["l1"]).sum() == pytest.approx(1)
    assert np.abs(scaled["max"]).max() == pytest.approx(1)
    unit = scaled["min-max"]
    assert (unit.min(), unit.max()) == (0, 1 if len(set(scores)) > 1 else 0)
    assert scaled["none"].tolist() == scores


@given(SCORES, st.sampled_from(KINDS))
def test_order_within_a_group_stays(scores: list[float], how: str):
    scaled = normalise({"a": torch.tensor(scores, dtype=torch.float64)}, how)["a"].numpy()
    assert (np.diff(scaled[np.argsort(scores, kind="stable")]) >= 0).all()


def test_the_paper_formula():
    scores = torch.rand(5) + 0.1
    assert torch.allclose(normalise({"a": scores})["a"], scores / scores.square().sum().sqrt())


def test_groups_are_scaled_apart_and_inputs_are_left_alone():
    values = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([100.0, 0.0, 0.0])}
    scaled = normalise(values, "max")
    assert scaled["a"].tolist() == [1, 1]
    assert scaled["b"].tolist() == [1, 0, 0]
    assert list(scaled) == ["a", "b"]
    kept = normalise(values, "none")["a"]
    kept.zero_()
    assert values["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32),
     (torch.float16, torch.float32), (torch.int64, torch.float32)],
)  # fmt: skip
def test_dtypes(given: torch.dtype, wanted: torch.dtype):
    for how in KINDS:
        assert normalise({"a": torch.tensor([1, 2], dtype=given)}, how)["a"].dtype == wanted


def test_unknown_kind():
    with pytest.raises(
        UsageError, match=r"Unknown normalisation 'l3': choose one of l2, l1, max, min-max, none"
    ):
        normalise({}, "l3")
