"""Measure how well objects are detected: mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateur._torchvision import torchvision

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Least ratios of intersection and union at which a box counts as found."""

_RECALLS = np.linspace(0, 1, 101)
_MOST = 100

Boxes = Mapping[str, Tensor]
"""Of one image: ``boxes``, shape ``(N, 4)``, ``labels``, shape ``(N,)``, and of detections ``scores``."""


def mean_average_precision(found: Sequence[Boxes], expected: Sequence[Boxes]) -> dict[str, float]:
    """Compute the mean average precision as for COCO (arXiv 1405.0312, and the rules of its benchmark).

    For each class and least overlap, detections are ordered by their scores. Each takes the free object of
    its image that it overlaps most, if enough, and counts as correct then. Precision at a recall is the
    highest at this or a higher recall; its mean over 101 recalls is averaged over the classes that have
    objects.

    Args:
        found: boxes, labels and scores that were detected, for each image; the best 100 are counted.
        expected: boxes and labels of the objects, for each image.

    Returns:
        ``map50`` for an overlap of at least 0.5, and ``map``, the mean over overlaps of 0.5, 0.55, ... 0.95.

    Example:
        >>> import torch
        >>> boxes, labels = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1])
        >>> detected = {"boxes": boxes * 1.1, "labels": labels, "scores": torch.tensor([0.9])}
        >>> mean_average_precision([detected], [{"boxes": boxes, "labels": labels}])  # they overlap by 0.83
        {'map50': 1.0, 'map': 0.7}
    """
    classes = sorted({int(label) for image in expected for label in image["labels"]})
    precisions = [_average_precisions(label, found, expected) for label in classes]
    means = np.mean(precisions, axis=0) if precisions else np.zeros(len(THRESHOLDS))
    return {"map50": round(float(means[0]), 6), "map": round(float(means.mean()), 6)}


def _average_precisions(label: int, found: Sequence[Boxes], expected: Sequence[Boxes]) -> NDArray[Any]:
    """Compute the average precision of one class at each threshold."""
    scores: list[NDArray[Any]] = []
    correct: list[NDArray[Any]] = []
    objects = 0
    for detected, image in zip(found, expected, strict=True):
        order = detected["scores"].argsort(descending=True, stable=True)[:_MOST]
        order = order[detected["labels"][order] == label]
        boxes = image["boxes"][image["labels"] == label]
        objects += len(boxes)
        scores.append(detected["scores"][order].numpy(force=True))
        overlaps = torchvision.ops.box_iou(detected["boxes"][order], boxes.to(order.device))
        correct.append(_correct(overlaps.numpy(force=True)))
    ranked = np.concatenate(correct)[np.argsort(-np.concatenate(scores), kind="stable")]
    hits = ranked.cumsum(axis=0)
    precision = hits / np.arange(1, len(ranked) + 1)[:, None]
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    means = np.zeros(len(THRESHOLDS))
    for column in range(len(THRESHOLDS)):
        places = np.searchsorted(hits[:, column] / objects, _RECALLS - 1e-12)
        means[column] = np.append(best[:, column], 0.0)[places].mean()
    return means


def _correct(overlaps: NDArray[Any]) -> NDArray[Any]:
    """Assign detections of one image and class, by descending score, to objects.

    Args:
        overlaps: of each detection with each object.

    Returns:
        Whether each detection is correct at each threshold.
    """
    result = np.zeros((len(overlaps), len(THRESHOLDS)), dtype=bool)
    for column, least in enumerate(THRESHOLDS):
        free = np.ones(overlaps.shape[1], dtype=bool)
        for number, row in enumerate(overlaps):
            best = int(np.argmax(np.where(free, row, -1.0))) if free.any() else -1
            if best >= 0 and row[best] >= least:
                free[best], result[number, column] = False, True
    return result
