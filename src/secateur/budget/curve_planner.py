"""Plan by width curves: choose the widths of least measured damage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secateur.budget.curves import WidthCurves
from secateur.budget.feasible import FeasibleWidths
from secateur.budget.integer_programme import GroupOptions, minimise_damage
from secateur.budget.limits import CostEvaluator
from secateur.budget.ties import summed, vanishing
from secateur.errors import UsageError
from secateur.graph import ChannelGraph
from secateur.graph.groups import IntArray
from secateur.plan import PruningPlan

_MOST = 96  # widths of one group that are offered: enough for every budget, few enough to solve
_MOST_OF_KIND = 2048  # of many groups with one width: there are few kinds, and one step of a kind costs much
_THIN = (0.1, 0.05, 0.02, 0.01)  # shares of a group below which its curve is not reliable


def plan_by_curves(
    evaluator: CostEvaluator, curves: WidthCurves, feasible: FeasibleWidths, ties: IntArray | None = None
) -> PruningPlan:
    """Plan the widths within the limits that have the least damage, summed over groups and removed branches.

    Curves are measured with all other groups intact, which can compensate. If several groups become very
    narrow, damages no longer add up: the sum is far too small. So every group keeps a tenth of its channels,
    or less where the budget leaves no room for that.

    Args:
        evaluator: the network and the limits, which the least widths meet.
        curves: the damage of each group's widths.
        feasible: the widths that groups may take.
        ties: the kind of each group, where all groups of one kind get one width.

    Returns:
        The plan; within each group the channels are removed in the order of its curve.

    Raises:
        BudgetError: the search finds no widths within the limits.
        UsageError: a curve is missing or of another network.
    """
    graph = evaluator.graph
    most = _MOST if ties is None else _MOST_OF_KIND
    options = _options(graph, curves, feasible, _reliable(feasible, evaluator), most)
    if not evaluator.within(np.array([option.widths[0] for option in options], dtype=np.int64)):
        # Narrower is not always faster: then only the least widths of all groups are certain to be within.
        options = _options(graph, curves, feasible, feasible.least, most)
    inside = feasible.depth.inside if feasible.depth.units else None
    if ties is None:
        chosen = minimise_damage(evaluator, options, inside)
    else:
        together = None if inside is None else vanishing(inside, ties)
        chosen = minimise_damage(replace(evaluator, ties=ties), summed(options, ties), together)[ties]
    return feasible.plan(graph, chosen, lambda number, width: curves[graph.groups[number].name].kept(width))


def _options(
    graph: ChannelGraph, curves: WidthCurves, feasible: FeasibleWidths, least: IntArray, most: int
) -> list[GroupOptions]:
    """List at most so many widths of each unit from the least ones on, and the damage at each.

    Raises:
        UsageError: a curve is missing or of another network.
    """
    options = []
    for number, group in enumerate(graph.groups):
        if feasible.least[number] == group.channels:
            options.append(GroupOptions(np.array([group.channels]), np.zeros(1)))
            continue
        curve = curves.get(group.name)
        if curve is None or len(curve.order) != group.channels:
            raise UsageError(
                f"group '{group.name}' of {group.channels} channels has no width curve; "
                "measure the curves on this network, or ignore the group"
            )
        widths = feasible.allowed(number)
        widths = widths[widths >= least[number]]
        if len(widths) > most:
            widths = widths[np.unique(np.linspace(0, len(widths) - 1, most).round().astype(np.int64))]
        options.append(GroupOptions(widths, curve.at(widths)))
    for unit in feasible.depth.units:
        missing = [name for name in unit if name not in curves.branches]
        if missing:
            raise UsageError(
                f"the damage of removing branch '{missing[0]}' is not measured; measure the curves with "
                "CurveOptions(branches=True), or ignore the branch"
            )
        # A branch that is present never counts as more damage than one that is absent.
        damage = max(0.0, sum(curves.branches[name] for name in unit))
        options.append(GroupOptions(np.array([0, 1]), np.array([damage, 0.0])))
    return options


def _reliable(feasible: FeasibleWidths, evaluator: CostEvaluator) -> IntArray:
    """Find the least width of each unit whose damage adds up with that of others, shape ``(units,)``.

    A floor is used only if the network is within the budget when every group keeps twice as much. Branches
    have none.
    """
    is_group = np.arange(len(feasible.original)) < len(evaluator.graph.groups)
    for share in _THIN:
        ample = feasible.below(
            np.minimum(np.ceil(2 * share * feasible.original).astype(np.int64), feasible.most)
        )
        if evaluator.within(ample):
            floor = np.minimum(np.ceil(share * feasible.original).astype(np.int64), ample)
            return np.where(is_group, floor, 0)
    return feasible.least
