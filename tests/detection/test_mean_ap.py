"""Mean average precision: closed forms, and the implementation of ultralytics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur._torchvision import suppressed, torchvision
from secateur.detection.mean_ap import THRESHOLDS, mean_average_precision


def image(
    boxes: list[list[float]], labels: list[int], scores: list[float] | None = None
) -> dict[str, Tensor]:
    found = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}
    return found if scores is None else {**found, "scores": torch.tensor(scores)}


BOX, FAR = [0.0, 0, 10, 10], [50.0, 50, 60, 60]


def test_closed_forms() -> None:
    objects = [image([BOX, FAR], [1, 1])]
    both = [image([BOX, FAR], [1, 1], [0.9, 0.8])]
    assert mean_average_precision(both, objects) == {"map50": 1.0, "map": 1.0}
    # One of two objects: recalls 0 to 0.5 are reached with precision 1, which are 51 of 101.
    one = [image([BOX], [1], [0.9])]
    assert mean_average_precision(one, objects)["map50"] == pytest.approx(51 / 101, abs=1e-6)
    # A wrong box of a higher score: precision 1/2 at recall 0.5, 2/3 at 1, the highest afterwards.
    wrong = [image([[80.0, 80, 90, 90], BOX, FAR], [1, 1, 1], [0.95, 0.9, 0.8])]
    assert mean_average_precision(wrong, objects)["map50"] == pytest.approx(2 / 3, abs=1e-6)
    # The second box on one object is wrong, and another class counts apart: its precision is 0.
    twice = [image([BOX, BOX], [1, 2], [0.9, 0.8])]
    assert mean_average_precision(twice, [image([BOX, BOX], [1, 3])])["map50"] == pytest.approx(0.5)
    assert mean_average_precision([image([], [], [])], [image([], [])]) == {"map50": 0.0, "map": 0.0}
    assert mean_average_precision([image([], [], [])], objects) == {"map50": 0.0, "map": 0.0}


def test_overlaps_count_up_to_their_threshold() -> None:
    boxes = image([[0.0, 0, 10, 7.2]], [1], [0.5])  # the ratio is 0.72: five of the ten thresholds
    assert mean_average_precision([boxes], [image([BOX], [1])]) == {"map50": 1.0, "map": 0.5}


def boxes_of(random: np.random.Generator, count: int) -> Tensor:
    corner, size = random.uniform(0, 50, (count, 2)), random.uniform(5, 30, (count, 2))
    return torch.tensor(np.concatenate([corner, corner + size], axis=1), dtype=torch.float32)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_ultralytics_finds_about_the_same(seed: int) -> None:
    pytest.importorskip("ultralytics")
    from ultralytics.utils.metrics import ap_per_class

    random = np.random.default_rng(seed)
    expected, found, hits = [], [], []
    for _ in range(6):
        objects = boxes_of(random, 6)
        labels = torch.tensor(random.integers(1, 3, 6))
        moved = objects + torch.tensor(random.normal(0, 1.5, (6, 4)), dtype=torch.float32)
        expected.append({"boxes": objects, "labels": labels})
        found.append({"boxes": moved, "labels": labels, "scores": torch.tensor(random.random(6))})
        # Each box overlaps its own object or none: greedy and optimal assignments are the same.
        overlaps = torchvision.ops.box_iou(moved, objects)
        same = labels[:, None] == labels[None]
        if ((overlaps * same).argmax(1) != torch.arange(6)).any() or ((overlaps * same) >= 0.5).sum(1).gt(
            1
        ).any():
            return
        hits.append(overlaps.diagonal()[:, None].numpy() >= THRESHOLDS)
    scores = torch.cat([one["scores"] for one in found]).numpy()
    labels = torch.cat([one["labels"] for one in expected]).numpy()
    reference = ap_per_class(np.concatenate(hits), scores, labels, labels)[5]
    mine = mean_average_precision(found, expected)
    assert mine["map"] == pytest.approx(reference.mean(), abs=0.02)  # it integrates by trapezes


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 12))
def test_suppressed_boxes_overlap_a_better_one(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    boxes, scores = boxes_of(random, count), torch.tensor(random.random(count), dtype=torch.float32)
    kept: list[int] = []
    for number in scores.argsort(descending=True).tolist():  # the definition, one box after the other
        ratios = torchvision.ops.box_iou(boxes[[number]], boxes[kept])
        if not (ratios > 0.4).any():
            kept.append(number)
    assert suppressed(boxes, scores, 0.4).tolist() == kept
