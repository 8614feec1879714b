"""The plan of least measured damage."""

from __future__ import annotations

import numpy as np

from secateur.budget.damage import WidthCurves
from secateur.budget.knapsack import Choice, least_damage
from secateur.budget.limits import Budget, Meter
from secateur.budget.room import Room, Rules
from secateur.budget.shortfall import shortfall
from secateur.errors import BudgetError, UsageError
from secateur.graph import ChannelGraph
from secateur.graph.groups import IntArray
from secateur.latency import LatencyModel
from secateur.plan import PruningPlan

_MOST = 96  # widths of one group that are offered: enough for every budget, few enough to solve
_THIN = (0.1, 0.05, 0.02, 0.01)  # shares of a group below which its curve is not taken at its word


def plan_by_curves(
    graph: ChannelGraph,
    curves: WidthCurves,
    budget: Budget,
    rules: Rules,
    latency: LatencyModel | None = None,
) -> PruningPlan:
    """The plan that keeps to a budget with the least damage, added up over groups.

    Curves are measured on one group at a time, while all others are whole and stand in for it. Where several
    nearly vanish at once nothing does, and the damage is many times the sum. So every group keeps a tenth of
    its channels, or less where the budget leaves no room for that.

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
    choices = _offers(graph, curves, room, _trusted(room, meter))
    if not meter.within(np.array([choice.widths[0] for choice in choices], dtype=np.int64)):
        # Narrower is not always faster: then only the least widths of all are sure to be within.
        choices = _offers(graph, curves, room, room.least)
    chosen = least_damage(meter, choices)
    return PruningPlan(
        graph,
        {
            group.name: curves[group.name].kept(int(width))
            for group, width in zip(graph.groups, chosen, strict=True)
            if width < group.channels
        },
    )


def _offers(graph: ChannelGraph, curves: WidthCurves, room: Room, least: IntArray) -> list[Choice]:
    """The widths of each group from the least ones on, and the damage at each.

    Raises:
        UsageError: if a curve is missing or of another network.
    """
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
        widths = widths[widths >= least[number]]
        if len(widths) > _MOST:
            widths = widths[np.unique(np.linspace(0, len(widths) - 1, _MOST).round().astype(np.int64))]
        choices.append(Choice(widths, curve.at(widths)))
    return choices


def _trusted(room: Room, meter: Meter) -> IntArray:
    """The least width of each group whose damage adds up with that of others, shape ``(groups,)``.

    There is room for a floor where twice as much of every group would still be within the budget.
    """
    for share in _THIN:
        ample = room.below(np.minimum(np.ceil(2 * share * room.widths).astype(np.int64), room.most))
        if meter.within(ample):
            return np.asarray(np.minimum(np.ceil(share * room.widths).astype(np.int64), ample))
    return room.least
