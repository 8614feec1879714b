"""Criteria: what a channel is worth."""

from __future__ import annotations

from secateur.criteria.activation import ActivationCriterion, ActivationMean, ActivationStd, Apoz
from secateur.criteria.base import (
    Criterion,
    Needs,
    Observer,
    Subject,
    criterion_names,
    register,
    resolve,
)
from secateur.criteria.charge import channel_costs, charged
from secateur.criteria.control import Random
from secateur.criteria.curvature import Obd
from secateur.criteria.gates import GateCriterion
from secateur.criteria.gradient import Taylor, TaylorSquared
from secateur.criteria.information import MutualInformation
from secateur.criteria.normalise import normalise
from secateur.criteria.reconstruction import Reconstruction
from secateur.criteria.scores import Scores
from secateur.criteria.scoring import score
from secateur.criteria.watching import Watch, watch
from secateur.criteria.weight import BatchNormScale, Fpgm, Lamp, Magnitude, WeightCriterion
from secateur.criteria.weight_gradient import TaylorWeight

__all__ = [
    "ActivationCriterion",
    "ActivationMean",
    "ActivationStd",
    "Apoz",
    "BatchNormScale",
    "Criterion",
    "Fpgm",
    "GateCriterion",
    "Lamp",
    "Magnitude",
    "MutualInformation",
    "Needs",
    "Obd",
    "Observer",
    "Random",
    "Reconstruction",
    "Scores",
    "Subject",
    "Taylor",
    "TaylorSquared",
    "TaylorWeight",
    "Watch",
    "WeightCriterion",
    "channel_costs",
    "charged",
    "criterion_names",
    "normalise",
    "register",
    "resolve",
    "score",
    "watch",
]
