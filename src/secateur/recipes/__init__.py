"""Define recipes for the complete pruning of a network, and run them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur._lazy import lazy_names

if TYPE_CHECKING:
    from secateur.recipes.callbacks import Callback
    from secateur.recipes.context import RecipeContext, Training
    from secateur.recipes.cutting import Cut
    from secateur.recipes.latency_tuner import LatencyFit, LatencyOptions
    from secateur.recipes.measured import Measured, fingerprint
    from secateur.recipes.pruning import prune
    from secateur.recipes.recipe import CHANNELS_LEFT, PRESETS, CostRegularization, Distillation, Recipe
    from secateur.recipes.result import PruneResult
    from secateur.recipes.runner import run_recipe
    from secateur.recipes.search import SearchResult, Tried, smallest_within
    from secateur.recipes.trade_off import Frontier, FrontierPoint, frontier, run_frontier

__all__ = [
    "CHANNELS_LEFT",
    "PRESETS",
    "Callback",
    "CostRegularization",
    "Cut",
    "Distillation",
    "Frontier",
    "FrontierPoint",
    "LatencyFit",
    "LatencyOptions",
    "Measured",
    "PruneResult",
    "Recipe",
    "RecipeContext",
    "SearchResult",
    "Training",
    "Tried",
    "fingerprint",
    "frontier",
    "prune",
    "run_frontier",
    "run_recipe",
    "smallest_within",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "callbacks": "Callback",
        "context": "RecipeContext Training",
        "cutting": "Cut",
        "latency_tuner": "LatencyFit LatencyOptions",
        "measured": "Measured fingerprint",
        "pruning": "prune",
        "recipe": "CHANNELS_LEFT PRESETS CostRegularization Distillation Recipe",
        "result": "PruneResult",
        "runner": "run_recipe",
        "search": "SearchResult Tried smallest_within",
        "trade_off": "Frontier FrontierPoint frontier run_frontier",
    },
)
