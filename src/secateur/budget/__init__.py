"""Budgets: what may remain of a network, and which channels to give up for it.

``limits`` holds the ``Budget``, ``room`` the widths that a group may have, ``order`` the order in
which channels go, ``choice`` the plan that meets all limits by scores; ``damage`` holds width curves,
``curved`` and ``knapsack`` the plan of least measured damage.
"""

from __future__ import annotations

from secateur.budget.choice import RoundTo, make_plan, reachable, uniform_plan
from secateur.budget.damage import WidthCurve, WidthCurves
from secateur.budget.forecast import Forecast, forecast
from secateur.budget.limits import Budget
from secateur.budget.order import Scope
from secateur.budget.times import Milliseconds

__all__ = [
    "Budget",
    "Forecast",
    "Milliseconds",
    "RoundTo",
    "Scope",
    "WidthCurve",
    "WidthCurves",
    "forecast",
    "make_plan",
    "reachable",
    "uniform_plan",
]
