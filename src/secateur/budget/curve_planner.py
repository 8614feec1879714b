"""Plan by width curves: choose the widths of least measured damage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from secateur.budget.curves import WidthCurves
from secateur.budget.feasible import FeasibleWidths
from secateur.budget.integer_programme import GroupOptions, minimise_damage
from secateur.budget.limits import CostEvaluator
from secateur.errors import UsageError
from secateur.graph.groups import IntArray
from secateur.plan import PruningPlan

_MOST = 96  # widths of one group that are offered: enough for every budget, few enough to solve
_MOST_OF_KIND = 2048  # of many groups with one width: there are few kinds, and one step of a kind costs much
_THIN = (0.1, 0.05, 0.02, 0.01)  # shares of a group below which its curve is not reliable


def plan_by_curves(evaluator: CostEvaluator, curves: WidthCurves, feasible: FeasibleWidths) -> PruningPlan:
    """Plan the widths within the limits that have the least damage, summed over groups and removed branches.

    Curves are measured with all other groups intact, which can compensate. If several groups become very
    narrow, damages no longer add up: the sum is far too small. So every group keeps a tenth of its channels,
    or less where the budget leaves no room for that.

    Args:
        evaluator: the network and the limits, which the least widths meet.
        curves: the damage of each group's widths.
        feasible: the widths that groups may take.

    Returns:
        The plan; within each group the channels are removed in the order of its curve.

    Raises:
        BudgetError: the search finds no widths within the limits.
        UsageError: a curve is missing or of another network.
    """
    options = _options(curves, feasible, _reliable(feasible, evaluator))
    if not evaluator.within(np.array([option.widths[0] for option in options], dtype=np.int64)):
        # Narrower is not always faster: then only the least widths of all groups are certain to be within.
        options = _options(curves, feasible, feasible.least)
    choice = minimise_damage(evaluator, options, feasible.space.inside)
    groups = evaluator.graph.groups
    return feasible.plan(choice, lambda number, width: curves[groups[number].name].kept(width))


def _options(curves: WidthCurves, feasible: FeasibleWidths, least: IntArray) -> list[GroupOptions]:
    """List widths of each tie from the least ones on, and the damage at each: the sum over its groups.

    Raises:
        UsageError: a curve is missing or of another network.
    """
    options, ties = [], feasible.space.ties
    most = _MOST_OF_KIND if feasible.space.is_tied else _MOST
    for group, tie in zip(feasible.space.graph.groups, ties, strict=False):
        if feasible.least[tie] == group.channels:
            options.append(GroupOptions(np.array([group.channels]), np.zeros(1)))
            continue
        curve = curves.get(group.name)
        if curve is None or len(curve.order) != group.channels:
            raise UsageError(
                f"group '{group.name}' of {group.channels} channels has no width curve; "
                "measure the curves on this network, or ignore the group"
            )
        widths = feasible.allowed(tie)
        widths = widths[widths >= least[tie]]
        if len(widths) > most:
            widths = widths[np.unique(np.linspace(0, len(widths) - 1, most).round().astype(np.int64))]
        options.append(GroupOptions(widths, curve.at(widths)))
    for unit in feasible.space.depth.units:
        missing = [name for name in unit if name not in curves.branches]
        if missing:
            raise UsageError(
                f"the damage of removing branch '{missing[0]}' is not measured; measure the curves with "
                "CurveOptions(branches=True), or ignore the branch"
            )
        # A branch that is present never counts as more damage than one that is absent.
        damage = max(0.0, sum(curves.branches[name] for name in unit))
        options.append(GroupOptions(np.array([0, 1]), np.array([damage, 0.0])))
    return summed(options, ties)


def summed(options: Sequence[GroupOptions], ties: IntArray) -> list[GroupOptions]:
    """Add up the damages of tied units at the widths that all of them have.

    Args:
        options: of each unit.
        ties: the index of the tie of each unit.

    Returns:
        The options of each tie.

    >>> one = GroupOptions(np.array([1, 2, 4]), np.array([0.75, 0.25, 0.0]))
    >>> other = GroupOptions(np.array([2, 3, 4]), np.array([0.5, 0.1, 0.0]))
    >>> found = summed([one, other], np.array([0, 0]))[0]
    >>> found.widths.tolist(), found.damages.tolist()
    ([2, 4], [0.75, 0.0])
    """
    result = []
    for tie in range(ties.max(initial=-1) + 1):
        members = [options[unit] for unit in np.flatnonzero(ties == tie).tolist()]
        widths = reduce(np.intersect1d, [member.widths for member in members])
        damages = sum(member.damages[np.searchsorted(member.widths, widths)] for member in members)
        result.append(GroupOptions(widths, np.asarray(damages, dtype=np.float64)))
    return result


def _reliable(feasible: FeasibleWidths, evaluator: CostEvaluator) -> IntArray:
    """Find the least width of each tie whose damage adds up with that of others, shape ``(ties,)``.

    A floor is used only if the network is within the budget when every group keeps twice as much. Branches
    have none.
    """
    for share in _THIN:
        ample = feasible.below(
            np.minimum(np.ceil(2 * share * feasible.original).astype(np.int64), feasible.most)
        )
        if evaluator.within(ample):
            floor = np.minimum(np.ceil(share * feasible.original).astype(np.int64), ample)
            return np.where(feasible.space.is_branch, 0, floor)
    return feasible.least
