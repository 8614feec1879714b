"""Ways to cut a network and to train it that benchmarks compare: ours, parts of it, the peer's, controls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch.nn.functional as F
from cifar import Setting
from networks import renew
from peer import torch_pruning
from torch import nn

import secateur as sec
from secateur.budget import Allocation, WidthCurves
from secateur.criteria import Scores
from secateur.recovery import recalibrate
from secateur.training.distillation import Teacher

Cut = Callable[[float], nn.Module]
"""Gives a smaller network for a share of the MACs; shares are asked for in descending order."""


@dataclass(frozen=True)
class Way:
    """How a network is cut, and what is added to its training.

    Attributes:
        cut: looks at the pictures once, and returns what makes smaller networks.
        distill: weight of the baseline's answers in the loss.
        temperature: of those answers.
        average: decay of the average of the weights.
        mirror: ask the baseline for the mirror image of each picture too.
    """

    cut: Callable[[Setting], Cut]
    distill: float = 0.0
    temperature: float = 4.0
    average: float = 0.0
    mirror: bool = False

    def teacher(self, model: nn.Module | None) -> Teacher | None:
        """The baseline, if it is to be learnt from."""
        if model is None or not self.distill:
            return None
        return Teacher(copy.deepcopy(model), self.distill, self.temperature, self.mirror)


@cache
def scored(setting: Setting, criterion: str) -> Scores:
    """Scores of all channels."""
    return sec.score(setting.model, setting.graph, criterion, setting.batches, F.cross_entropy)


@cache
def curves(setting: Setting, criterion: str) -> WidthCurves:
    """Width curves of the groups that may be cut, measured once for all ways that use them."""
    scores = scored(setting, criterion)
    wanted = {name: scores[name] for name in scores if name not in setting.left_alone}
    return sec.width_curves(setting.model, setting.graph, wanted, setting.batches)


@dataclass(frozen=True)
class Ours:
    """Scores, widths, repair.

    Attributes:
        criterion: gives the order of the channels in each group.
        allocate: ``curves``, ``uniform`` or ``global``.
        repair: refit consumers by least squares.
        recalibrated: measure batch-norm statistics anew instead.
    """

    criterion: str = "reconstruction"
    allocate: Allocation = "curves"
    repair: bool = True
    recalibrated: bool = False

    def __call__(self, setting: Setting) -> Cut:
        """Scores, and curves if they are wanted; cuts come later."""
        ranking: Any = scored(setting, self.criterion)
        if self.allocate == "curves":
            ranking = curves(setting, self.criterion)
        return partial(self.cut, setting, ranking)

    def cut(self, setting: Setting, ranking: Any, share: float) -> nn.Module:
        """The smaller network."""
        budget = sec.Budget(macs=share)
        plan = sec.make_plan(
            setting.graph,
            ranking,
            budget,
            allocation=self.allocate,
            widths=sec.Widths(ignore=setting.left_alone),
        )
        small = sec.apply_plan(setting.model, plan)
        if self.repair:
            sec.reconstruct(setting.model, small, plan, setting.batches)
        if self.recalibrated:
            recalibrate(small, setting.batches)
        return small


def from_scratch(setting: Setting) -> Cut:
    """The widths of the full way with fresh random weights."""
    chosen = Ours(repair=False)(setting)

    def fresh(share: float) -> nn.Module:
        small = chosen(share)
        renew(small)
        return small

    return fresh


def with_streams(setting: Setting) -> Cut:
    """The full way, free to cut the residual streams too."""
    return Ours()(replace(setting, inner=False))


def not_cut(setting: Setting) -> Cut:
    """The baseline itself: what the training alone gives."""
    return lambda _: copy.deepcopy(setting.model)


FULL = Way(Ours(), distill=0.9, average=0.98)
WAYS: dict[str, Way] = {
    "full": FULL,
    "torch-pruning, taylor": Way(partial(torch_pruning, criterion="taylor")),
    "torch-pruning, group norm": Way(partial(torch_pruning, criterion="group norm")),
    "random": Way(Ours("random", "uniform", repair=False)),
    "from scratch": Way(from_scratch),
    "cut and repair only": Way(Ours()),
    "full, without curves": replace(FULL, cut=Ours(allocate="uniform")),
    "full, taylor order": replace(FULL, cut=Ours("taylor")),
    "full, without repair": replace(FULL, cut=Ours(repair=False)),
    "full, recalibrated": replace(FULL, cut=Ours(recalibrated=True)),
    "full, without distillation": replace(FULL, distill=0.0),
    "full, mirrored": replace(FULL, mirror=True),
    "full, half of the loss distilled": replace(FULL, distill=0.5),
    "full, temperature 2": replace(FULL, temperature=2.0),
    "full, without average": replace(FULL, average=0.0),
    "full, with streams": replace(FULL, cut=with_streams),
    "taylor, global, cut only": Way(Ours("taylor", "global", repair=False)),
    "not cut, full training": replace(FULL, cut=not_cut),
    "not cut": Way(not_cut),
    "not cut, adapted further": Way(not_cut, average=0.98),
}
