"""Budgets: what may remain of a network, and which channels to remove for it.

``limits`` holds the ``Budget`` and counts what widths cost, ``widths`` holds the widths that groups may have.
``planning`` makes plans, by scores in the order of ``removal_order``, or by width curves (``curves``) with
``curve_planner`` and ``integer_programme``. ``forecast`` predicts what plans can reach.
"""

from __future__ import annotations

from secateur.budget.curves import WidthCurve, WidthCurves
from secateur.budget.forecast import Forecast, forecast, reachable
from secateur.budget.limits import Budget
from secateur.budget.planning import Allocation, make_plan, plan_within
from secateur.budget.widths import Widths

__all__ = [
    "Allocation",
    "Budget",
    "Forecast",
    "WidthCurve",
    "WidthCurves",
    "Widths",
    "forecast",
    "make_plan",
    "plan_within",
    "reachable",
]
