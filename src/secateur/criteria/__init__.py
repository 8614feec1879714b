"""Score channels: criteria, and what computes and collects their scores."""

from __future__ import annotations

from secateur.criteria.activation import ActivationCriterion, ActivationMean, ActivationStd, Apoz
from secateur.criteria.base import (
    Criterion,
    Needs,
    ObservedNetwork,
    Observer,
    criterion_names,
    register,
    resolve,
)
from secateur.criteria.control import Random
from secateur.criteria.cost_regularization import channel_costs, regularize_scores
from secateur.criteria.curvature import Obd
from secateur.criteria.gates import GateCriterion
from secateur.criteria.gradient import Taylor, TaylorSquared
from secateur.criteria.influence import BlockInfluence
from secateur.criteria.information import MutualInformation
from secateur.criteria.normalise import normalise
from secateur.criteria.reconstruction import ReconstructionError
from secateur.criteria.score_collector import ScoreCollector, watch
from secateur.criteria.scores import Scores
from secateur.criteria.scoring import score
from secateur.criteria.weight import BatchNormScale, Fpgm, Lamp, Magnitude, WeightCriterion
from secateur.criteria.weight_gradient import TaylorWeight
from secateur.criteria.weighted_activation import Flap, Wanda, WeightedActivationCriterion

__all__ = [
    "ActivationCriterion",
    "ActivationMean",
    "ActivationStd",
    "Apoz",
    "BatchNormScale",
    "BlockInfluence",
    "Criterion",
    "Flap",
    "Fpgm",
    "GateCriterion",
    "Lamp",
    "Magnitude",
    "MutualInformation",
    "Needs",
    "Obd",
    "ObservedNetwork",
    "Observer",
    "Random",
    "ReconstructionError",
    "ScoreCollector",
    "Scores",
    "Taylor",
    "TaylorSquared",
    "TaylorWeight",
    "Wanda",
    "WeightCriterion",
    "WeightedActivationCriterion",
    "channel_costs",
    "criterion_names",
    "normalise",
    "register",
    "regularize_scores",
    "resolve",
    "score",
    "watch",
]
