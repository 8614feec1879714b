"""Pruning from start to end: in one call, or cut by cut with fine-tuning between."""

from __future__ import annotations

from secateur.recipes.cutting import Cut
from secateur.recipes.iterative import IterativeResult, prune_iteratively
from secateur.recipes.latency_tuner import LatencyFit, LatencyOptions
from secateur.recipes.measured import Measured, fingerprint
from secateur.recipes.one_shot import PruneResult, prune
from secateur.recipes.progress import Resumed
from secateur.recipes.search import SearchResult, Tried, Unit, smallest_within
from secateur.recipes.settings import CHANNELS_LEFT, RECIPES, PruneSettings, recipe

__all__ = [
    "CHANNELS_LEFT",
    "RECIPES",
    "Cut",
    "IterativeResult",
    "LatencyFit",
    "LatencyOptions",
    "Measured",
    "PruneResult",
    "PruneSettings",
    "Resumed",
    "SearchResult",
    "Tried",
    "Unit",
    "fingerprint",
    "prune",
    "prune_iteratively",
    "recipe",
    "smallest_within",
]
