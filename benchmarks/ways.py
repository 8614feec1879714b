"""Ways to cut a network and to train it: ours, ours without single parts, the peer's, controls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch.nn.functional as F
from torch import nn

import secateur as sec
from benchmarks.networks import renew
from benchmarks.peer import torch_pruning
from benchmarks.setting import Setting
from secateur.budget import Allocation, WidthCurves
from secateur.criteria import Scores
from secateur.recovery import recalibrate
from secateur.training.distillation import Teacher

Cut = Callable[[float], nn.Module]
"""Returns a smaller network for a share of the MACs; call it with descending shares."""


@dataclass(frozen=True)
class Way:
    """How a network is cut, and what is added to its training.

    Attributes:
        cut: uses the images once, and returns a function that makes smaller networks.
        distill: weight of the baseline's outputs in the loss.
        temperature: of those outputs.
        average: decay of the exponential moving average of the weights.
        rate: peak learning rate: the better of 0.01 and 0.03 for its tool on the first draw.
        flip: average the baseline's outputs over each image and its mirror image.
    """

    cut: Callable[[Setting], Cut]
    distill: float = 0.0
    temperature: float = 4.0
    average: float = 0.0
    rate: float = 0.03
    flip: bool = False

    def teacher(self, model: nn.Module | None) -> Teacher | None:
        """Return the baseline as a teacher, if the network learns from it."""
        if model is None or not self.distill:
            return None
        return Teacher(copy.deepcopy(model), self.distill, self.temperature, self.flip)


@cache
def scored(setting: Setting, criterion: str) -> Scores:
    """Score all channels, once for all ways that use the scores."""
    return sec.score(setting.model, setting.graph, criterion, setting.batches, F.cross_entropy)


@cache
def curves(setting: Setting, criterion: str) -> WidthCurves:
    """Measure width curves of the groups that may be cut, once for all ways that use them."""
    scores = scored(setting, criterion)
    wanted = {name: scores[name] for name in scores if name not in setting.left_alone}
    return sec.width_curves(setting.model, setting.graph, wanted, setting.batches)


@dataclass(frozen=True)
class Ours:
    """Scores, widths and reconstruction of Secateur.

    Attributes:
        criterion: gives the order of the channels in each group.
        allocation: ``curves``, ``uniform`` or ``global``.
        reconstruct: fit the consumers of cut channels by least squares.
        recalibrated: measure batch-norm statistics again after that.
    """

    criterion: str = "reconstruction"
    allocation: Allocation = "curves"
    reconstruct: bool = True
    recalibrated: bool = False

    def __call__(self, setting: Setting) -> Cut:
        """Compute scores, and curves if they are needed."""
        ranking: Any = scored(setting, self.criterion)
        if self.allocation == "curves":
            ranking = curves(setting, self.criterion)
        return partial(self.cut, setting, ranking)

    def cut(self, setting: Setting, ranking: Any, share: float) -> nn.Module:
        """Cut to a share of the MACs."""
        budget = sec.Budget(macs=share)
        plan = sec.make_plan(
            setting.graph,
            ranking,
            budget,
            allocation=self.allocation,
            widths=sec.Widths(ignore=setting.left_alone),
        )
        small = sec.apply_plan(setting.model, plan)
        if self.reconstruct:
            sec.reconstruct(setting.model, small, plan, setting.batches)
        if self.recalibrated:
            recalibrate(small, setting.batches)
        return small


def from_scratch(setting: Setting) -> Cut:
    """Cut to the widths of the full way, and draw new random weights."""
    chosen = Ours(reconstruct=False)(setting)

    def fresh(share: float) -> nn.Module:
        small = chosen(share)
        renew(small)
        return small

    return fresh


def with_streams(setting: Setting) -> Cut:
    """Cut as the full way does, the residual streams too."""
    return Ours()(replace(setting, inner=False))


def not_cut(setting: Setting) -> Cut:
    """Leave the baseline whole, to see what training alone gives."""
    return lambda _: copy.deepcopy(setting.model)


FULL = Way(Ours(), distill=0.9, average=0.98, rate=0.01)
WAYS: dict[str, Way] = {
    "ours": FULL,
    "torch-pruning 1.6.1, Taylor": Way(partial(torch_pruning, criterion="taylor")),
    "torch-pruning 1.6.1, group norm": Way(partial(torch_pruning, criterion="group norm")),
    "random channels, uniform widths": Way(Ours("random", "uniform", reconstruct=False)),
    "the widths of ours, from scratch": Way(from_scratch),
    "cut and reconstruction only": Way(Ours(), rate=0.01),
    "ours, without curves": replace(FULL, cut=Ours(allocation="uniform")),
    "ours, Taylor order": replace(FULL, cut=Ours("taylor")),
    "ours, without reconstruction": replace(FULL, cut=Ours(reconstruct=False)),
    "ours, recalibrated": replace(FULL, cut=Ours(recalibrated=True)),
    "ours, without distillation": replace(FULL, distill=0.0),
    "ours, flipped teacher": replace(FULL, flip=True),
    "ours, half of the loss distilled": replace(FULL, distill=0.5),
    "ours, temperature 2": replace(FULL, temperature=2.0),
    "ours, without average": replace(FULL, average=0.0),
    "ours, with streams": replace(FULL, cut=with_streams),
    "Taylor, global, cut only": Way(Ours("taylor", "global", reconstruct=False)),
    "not cut, trained as ours": replace(FULL, cut=not_cut),
    "not cut": Way(not_cut),
    "not cut, adapted further": Way(not_cut, average=0.98),
}
