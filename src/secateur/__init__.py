"""Secateur removes whole channels from a trained PyTorch network and verifies every cut.

The pipeline: ``trace`` a network into a channel graph, ``score`` its channels, ``make_plan`` for a budget,
``apply_plan``, ``verify``; or all of it with ``prune``. The names below are imported on first use, so
``import secateur`` is fast. Less common names are imported from their modules, such as ``secateur.latency``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur._lazy import lazy_names
from secateur._torchvision_operators import install

if TYPE_CHECKING:
    from secateur.budget import Budget, Widths, make_plan
    from secateur.checkpoint import load, save
    from secateur.criteria import score
    from secateur.errors import BudgetError, SecateurError, TraceError, UsageError, VerificationError
    from secateur.graph import ChannelGraph, trace
    from secateur.integrations.pretrained import save_pretrained
    from secateur.latency import measure_latency
    from secateur.models import build
    from secateur.network_cost import cost
    from secateur.plan import PruningPlan, plan_from
    from secateur.recipes import Callback, Recipe, frontier, prune
    from secateur.recovery import reconstruct, width_curves
    from secateur.surgery import apply_plan
    from secateur.verification import verify

__version__ = "0.1.0"

install()

__all__ = [
    "Budget",
    "BudgetError",
    "Callback",
    "ChannelGraph",
    "PruningPlan",
    "Recipe",
    "SecateurError",
    "TraceError",
    "UsageError",
    "VerificationError",
    "Widths",
    "__version__",
    "apply_plan",
    "build",
    "cost",
    "frontier",
    "load",
    "make_plan",
    "measure_latency",
    "plan_from",
    "prune",
    "reconstruct",
    "save",
    "save_pretrained",
    "score",
    "trace",
    "verify",
    "width_curves",
]

_NAMES = {
    "budget": "Budget Widths make_plan",
    "checkpoint": "load save",
    "criteria": "score",
    "errors": "BudgetError SecateurError TraceError UsageError VerificationError",
    "graph": "ChannelGraph trace",
    "integrations.pretrained": "save_pretrained",
    "latency": "measure_latency",
    "models": "build",
    "network_cost": "cost",
    "plan": "PruningPlan plan_from",
    "recipes": "Callback Recipe frontier prune",
    "recovery": "reconstruct width_curves",
    "surgery": "apply_plan",
    "verification": "verify",
}

__getattr__, _ = lazy_names(__name__, _NAMES)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
