"""Secateur cuts whole channels out of a trained PyTorch network and verifies every cut.

The road is: ``trace`` a network into a channel graph, ``score`` its channels, ``make_plan`` for a
budget, ``apply_plan``, ``verify``. Every name below is imported on first use, so that
``import secateur`` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.agreement import Agreement, agreement
    from secateur.budget import (
        Budget,
        Forecast,
        WidthCurve,
        WidthCurves,
        Widths,
        forecast,
        make_plan,
        reachable,
    )
    from secateur.checkpoint import load, save
    from secateur.cost import cost
    from secateur.criteria import Scores, charged, score, watch
    from secateur.curves import width_curves
    from secateur.errors import (
        BudgetError,
        CheckpointError,
        DataError,
        ExportError,
        SecateurError,
        SurgeryError,
        TraceError,
        TrainingError,
        UsageError,
        VerificationError,
    )
    from secateur.export import Exported, FileCheck, export
    from secateur.graph import ChannelGraph, Cost, Group, Member, Reader, Role, register_rule, trace
    from secateur.heap import kept_heap
    from secateur.latency import (
        Latency,
        LatencyTable,
        Timings,
        compare_latency,
        latency_table,
        measure_latency,
    )
    from secateur.models import ModelSpec, build, load_weights
    from secateur.oracle import Oracle, oracle
    from secateur.plan import Edit, PruningPlan, plan_from
    from secateur.recipes import (
        LatencyOptions,
        Measured,
        SearchResult,
        prune,
        prune_iteratively,
        smallest_within,
    )
    from secateur.recovery import Repair, recalibrate, reconstruct
    from secateur.runtimes import Card, Runner, open_exported
    from secateur.surgery import apply_plan
    from secateur.verify import Expectation, Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Agreement",
    "Budget",
    "BudgetError",
    "Card",
    "ChannelGraph",
    "CheckpointError",
    "Cost",
    "DataError",
    "Edit",
    "Expectation",
    "ExportError",
    "Exported",
    "FileCheck",
    "Forecast",
    "Group",
    "Latency",
    "LatencyOptions",
    "LatencyTable",
    "Measured",
    "Member",
    "ModelSpec",
    "Oracle",
    "PruningPlan",
    "Reader",
    "Repair",
    "Role",
    "Runner",
    "Scores",
    "SearchResult",
    "SecateurError",
    "SurgeryError",
    "Timings",
    "TraceError",
    "TrainingError",
    "UsageError",
    "Verification",
    "VerificationError",
    "WidthCurve",
    "WidthCurves",
    "Widths",
    "__version__",
    "agreement",
    "apply_plan",
    "build",
    "charged",
    "compare_latency",
    "cost",
    "export",
    "forecast",
    "kept_heap",
    "latency_table",
    "load",
    "load_weights",
    "make_plan",
    "measure_latency",
    "open_exported",
    "oracle",
    "plan_from",
    "prune",
    "prune_iteratively",
    "reachable",
    "recalibrate",
    "reconstruct",
    "register_rule",
    "save",
    "score",
    "smallest_within",
    "trace",
    "verify",
    "watch",
    "width_curves",
]

_HOME = {
    "agreement": "Agreement agreement",
    "budget": "Budget Forecast WidthCurve WidthCurves forecast make_plan Widths reachable",
    "checkpoint": "load save",
    "cost": "cost",
    "criteria": "Scores charged score watch",
    "curves": "width_curves",
    "errors": (
        "BudgetError CheckpointError DataError ExportError SecateurError SurgeryError "
        "TraceError TrainingError UsageError VerificationError"
    ),
    "export": "Exported FileCheck export",
    "graph": "ChannelGraph Cost Group Member Reader Role register_rule trace",
    "heap": "kept_heap",
    "latency": "Latency LatencyTable Timings compare_latency latency_table measure_latency",
    "models": "ModelSpec build load_weights",
    "oracle": "Oracle oracle",
    "plan": "Edit PruningPlan plan_from",
    "recipes": "LatencyOptions Measured SearchResult prune prune_iteratively smallest_within",
    "recovery": "Repair recalibrate reconstruct",
    "runtimes": "Card Runner open_exported",
    "surgery": "apply_plan",
    "verify": "Expectation Verification verify",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps ``secateur.cost`` the function when the module ``secateur.cost`` is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _MODULE_OF):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
