"""The plan of least measured damage."""

from __future__ import annotations

import numpy as np

from secateur.budget.damage import WidthCurves
from secateur.budget.knapsack import Choice, least_damage
from secateur.budget.limits import Budget, Meter
from secateur.budget.room import Rules
from secateur.budget.shortfall import shortfall
from secateur.errors import BudgetError, UsageError
from secateur.graph import ChannelGraph
from secateur.latency import LatencyModel
from secateur.plan import PruningPlan

_MOST = 96  # widths of one group that are offered: enough for every budget, few enough to solve


def plan_by_curves(
    graph: ChannelGraph,
    curves: WidthCurves,
    budget: Budget,
    rules: Rules,
    latency: LatencyModel | None = None,
) -> PruningPlan:
    """The plan that keeps to a budget with the least damage, added up over groups.

    Args:
        graph: the graph of the network.
        curves: the damage of each group's widths.
        budget: what may remain.
        rules: what is asked of the widths.
        latency: tells milliseconds, if they are limited.

    Returns:
        The plan; within each group the channels go in the order of its curve.

    Raises:
        BudgetError: if the budget cannot be met.
        UsageError: if a curve is missing or of another network.
    """
    room = rules.room(graph)
    meter = Meter(graph, budget.amounts(graph, latency), latency)
    if not meter.within(room.least):
        raise BudgetError(shortfall(meter, rules))
    choices = []
    for number, group in enumerate(graph.groups):
        if room.least[number] == group.channels:
            choices.append(Choice(np.array([group.channels]), np.zeros(1)))
            continue
        curve = curves.get(group.name)
        if curve is None or len(curve.order) != group.channels:
            raise UsageError(
                f"group '{group.name}' of {group.channels} channels has no width curve; "
                "measure the curves on this network, or ignore the group"
            )
        widths = room.allowed(number)
        if len(widths) > _MOST:
            widths = widths[np.unique(np.linspace(0, len(widths) - 1, _MOST).round().astype(np.int64))]
        choices.append(Choice(widths, curve.at(widths)))
    chosen = least_damage(meter, choices)
    return PruningPlan(
        graph,
        {
            group.name: curves[group.name].kept(int(width))
            for group, width in zip(graph.groups, chosen, strict=True)
            if width < group.channels
        },
    )
