"""Budgets: what may remain of a network, and which channels to give up for it.

``limits`` holds the ``Budget``, ``room`` the widths that a group may have, ``order`` the order in
which channels go, ``choice`` the plan that meets all limits.
"""

from __future__ import annotations

from secateur.budget.choice import make_plan, reachable, uniform_plan
from secateur.budget.limits import Budget

__all__ = ["Budget", "make_plan", "reachable", "uniform_plan"]
