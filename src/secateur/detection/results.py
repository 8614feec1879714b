"""Describe the result of pruning a detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.recipes import PruneResult
from secateur.training.evaluate import Evaluation
from secateur.training.metrics import MAP, MAP_50, TOP_1, MetricKind


@dataclass(frozen=True)
class DetectorResult:
    """The result of pruning a detector.

    Attributes:
        network: the pruned network of ultralytics or torchvision, in evaluation mode.
        pruning: plan, verification, scores and curves; its network returns the raw outputs of the heads.
        metrics: what is measured on the validation images, by stage: ``"before"``, ``"cut"`` (after the
            last cut: reconstructed, not trained since), ``"after"``; for ultralytics in its names, for
            torchvision ``map`` and ``map50``.
        file: the ``.pt`` file, which ``YOLO(file)`` opens; for torchvision a checkpoint without pickle.
        arguments: of ultralytics that the last training used; empty without such a training.
    """

    network: nn.Module = field(repr=False)
    pruning: PruneResult = field(repr=False)
    metrics: Mapping[str, Mapping[str, float]]
    file: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        stages = "; ".join(f"{stage} {in_words(values)}" for stage, values in self.metrics.items())
        return f"{self.pruning}\non the validation images: {stages}\n{self.file}"


def evaluation_of(found: Mapping[str, float]) -> Evaluation:
    """Describe metrics of ultralytics as an evaluation: mAP50-95, or top-1 of a classifier.

    Args:
        found: by the names of ultralytics, or ``map`` and ``map50``.

    >>> evaluation_of({"metrics/mAP50(B)": 0.5, "metrics/mAP50-95(B)": 0.3, "fitness": 0.1}).figures
    {'map': 0.3, 'map50': 0.5}
    """
    plain = {_KEYS.get(name, name): value for name, value in found.items()}
    for kind, also in ((MAP, (MAP_50,)), (TOP_1, ())):
        if kind.key in plain:
            others = {other.key: plain[other.key] for other in also if other.key in plain}
            return Evaluation(plain[kind.key], name=kind.name, also=others)
    return Evaluation(plain["fitness"], name="fitness")


def kind_for(network: nn.Module) -> MetricKind:
    """Return the metric by which networks of a task are compared.

    Args:
        network: of ultralytics or torchvision.
    """
    return TOP_1 if getattr(network, "task", None) == "classify" else MAP


_KEYS = {
    "metrics/mAP50(B)": MAP_50.key,
    "metrics/mAP50-95(B)": MAP.key,
    "metrics/accuracy_top1": TOP_1.key,
}


def in_words(metrics: Mapping[str, float]) -> str:
    """Write metrics without the prefixes of ultralytics: mAP50, mAP50-95, top-1.

    >>> in_words({"map50": 0.9, "map": 0.61}), in_words({"metrics/mAP50(B)": 0.5, "fitness": 0.1})
    ('mAP50 0.900, mAP50-95 0.610', 'mAP50(B) 0.500')
    """
    plain = {"map50": "mAP50", "map": "mAP50-95"}
    shown = {
        plain.get(name, name.removeprefix("metrics/")): value
        for name, value in metrics.items()
        if name in plain or "mAP" in name or "top" in name
    }
    return ", ".join(f"{name} {value:.3f}" for name, value in shown.items()) or f"{metrics['fitness']:.3f}"
