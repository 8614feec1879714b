"""Limit what may remain of a network, and choose the channels to remove for it.

``limits`` holds the ``Budget`` and counts what widths cost, ``widths`` holds which widths groups may have,
and ``feasible`` finds them. ``choice_space`` holds what is chosen: one width for each group, or for several.
``planning`` makes plans, by scores in the order of ``removal_order``, or by width curves (``curves``) with
``curve_planner`` and ``integer_programme``; ``ties`` gives groups of one kind one width.
``body`` counts a language model without its embeddings.
``forecasts`` predicts what plans can reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur._lazy import lazy_names

if TYPE_CHECKING:
    from secateur.budget.body import params_of_body
    from secateur.budget.curves import WidthCurve, WidthCurves
    from secateur.budget.forecasts import Forecast, forecast, reachable
    from secateur.budget.limits import Allocation, Budget, Limits
    from secateur.budget.planning import make_plan, plan_within
    from secateur.budget.widths import Widths

__all__ = [
    "Allocation",
    "Budget",
    "Forecast",
    "Limits",
    "WidthCurve",
    "WidthCurves",
    "Widths",
    "forecast",
    "make_plan",
    "params_of_body",
    "plan_within",
    "reachable",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "body": "params_of_body",
        "curves": "WidthCurve WidthCurves",
        "forecasts": "Forecast forecast reachable",
        "limits": "Allocation Budget Limits",
        "planning": "make_plan plan_within",
        "widths": "Widths",
    },
)
