"""Plan by score: remove the channels of the lowest scores and keep to every limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from secateur.arguments import check_arguments
from secateur.budget.curve_planner import plan_by_curves
from secateur.budget.curves import WidthCurves
from secateur.budget.depth import branch_names
from secateur.budget.feasible import FeasibleWidths, Unscored, feasible_within
from secateur.budget.limits import Allocation, Budget, CostEvaluator, Limits, amount_of
from secateur.budget.removal_order import RemovalOrder, comparable, per_cost, removal_order
from secateur.budget.widths import Widths
from secateur.criteria import Scores
from secateur.errors import UsageError
from secateur.graph import ChannelGraph
from secateur.graph.groups import FloatArray, IntArray
from secateur.latency import LatencyModel
from secateur.plan import PruningPlan

_AT_ONCE = 32  # widths that one round of a search tries: three rounds find one place in 30,000


def make_plan(
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    budget: Budget,
    *,
    widths: Widths | None = None,
    allocation: Allocation = "global",
    normalize: str = "l2",
    latency: LatencyModel | None = None,
) -> PruningPlan:
    """Plan the removal of the channels with the lowest scores until the budget is met.

    Channels are removed in the order of their normalised scores, up to the first plan that meets every
    limit; then channels are put back, the highest score first, wherever the limits allow it. So no
    removed channel can be put back without breaking a limit, and a limit on channels alone is met
    exactly. Costs are computed from the widths; the model is not run. Equal inputs give equal
    plans: of equal scores, the first in the network is removed first.

    Args:
        graph: the graph of the network.
        scores: for each prunable group one number per channel, larger for channels that matter
            more: ``Scores``, or a mapping of group names to tensors, arrays or sequences. Groups
            that ``Scores`` names as unscored stay whole. Or ``WidthCurves``: then the widths of
            least measured damage are chosen, no less than a tenth of a group while the budget has room
            for that, and ``allocation`` and ``normalize`` have no effect.
        budget: what may remain.
        widths: which widths groups may have; all, if not given.
        allocation: ``"global"`` ranks the channels of all groups together; ``"uniform"`` takes the
            same share from every group, as nearly as the limits allow. There a share of the channels is the
            share that each group keeps, rounded down, but at least one channel and the floors of ``widths``.
        normalize: how scores of different groups are made comparable: ``"l2"``, ``"l1"``,
            ``"max"``, ``"min-max"`` or ``"none"``.
        latency: the network's times on this device, from :func:`secateur.latency.latency_table`; for budgets
            that limit latency, and for ``Widths(multiple_of="auto")``.

    Returns:
        The plan; it removes nothing if the budget is met already.

    Raises:
        BudgetError: the budget cannot be met; the message says what the least is, and what limits it.
        UsageError: scores are missing or unfit, or an argument is out of range.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = trace(net, torch.randn(1, 4))
        >>> plan = make_plan(graph, {"0": [5, 3, 8, 1, 9, 7, 2, 6]}, Budget(macs=0.5))
        >>> plan.removed, plan.cost_after.macs
        ({'0': (0, 1, 3, 6)}, 24)
    """
    check_arguments(graph=graph, scores=scores, budget=budget)
    uniform = allocation == "uniform" and not isinstance(scores, WidthCurves)
    return plan_within(
        graph,
        scores,
        budget.limits(graph, latency, uniform=uniform),
        widths=widths,
        allocation=allocation,
        normalize=normalize,
        latency=latency,
    )


def plan_within(
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    limits: Limits,
    *,
    widths: Widths | None = None,
    allocation: Allocation = "global",
    normalize: str = "l2",
    latency: LatencyModel | None = None,
) -> PruningPlan:
    """Make a plan for limits that are resolved already.

    Args:
        graph: as for :func:`make_plan`, like all that are not listed below.
        scores: scores or width curves.
        limits: what may remain, as :meth:`Budget.limits` gives it.
        widths: which widths groups may have.
        allocation: how channels of different groups are compared.
        normalize: how scores are made comparable.
        latency: predicts milliseconds.

    Raises:
        BudgetError: the limits cannot be met.
        UsageError: scores are missing or unfit, or an argument is out of range.
    """
    if allocation not in get_args(Allocation):
        raise UsageError(
            f"unknown allocation {allocation!r}: choose one of {', '.join(get_args(Allocation))}"
        )
    widths = widths or Widths()
    feasible, evaluator = feasible_within(graph, limits.amounts, widths, latency, _unscored(graph, scores))
    removes_branches = bool(feasible.space.depth.units)
    if isinstance(scores, WidthCurves):
        return plan_by_curves(evaluator, scores, feasible)
    if allocation == "curves":
        raise UsageError(
            "allocation='curves' needs width curves: give what width_curves(model, graph, scores, batches) "
            "measures in place of scores, or take 'global' or 'uniform'"
        )
    if allocation == "uniform" and removes_branches:
        raise UsageError(
            f"allocation='uniform' takes the same share of every group, and depth={widths.depth!r} removes "
            "whole branches: take allocation 'global' or 'curves', or depth 'off'"
        )
    if widths.uniform_widths and removes_branches:
        raise UsageError(
            "uniform_widths and the removal of branches in one plan need width curves: in place of scores, "
            "give what width_curves(model, graph, scores, batches, CurveOptions(branches=True)) measures"
        )
    if limits.share is not None:
        kept = np.array([amount_of(limits.share, int(count)) for count in feasible.original], dtype=np.int64)
        feasible = replace(feasible, most=np.minimum(feasible.most, feasible.below(kept)))
    if removes_branches:
        ranked = per_cost(scores, feasible, evaluator)
    else:
        ranked = comparable(scores, feasible, normalize)
    choice = _widths(evaluator, removal_order(ranked, feasible, allocation), feasible)
    return feasible.plan(choice, lambda number, width: _highest(ranked[number], width))


def _unscored(graph: ChannelGraph, scores: Mapping[str, Any]) -> Unscored:
    if isinstance(scores, WidthCurves):
        groups, scored = scores.unmeasured, scores.branches
    elif isinstance(scores, Scores):
        groups, scored = scores.unscored, scores.branches
    else:
        return Unscored()
    # If none is scored, they were not meant to be, and a plan that needs their scores says so.
    left_out = set(branch_names(graph)) - scored.keys() if scored else ()
    return Unscored(frozenset(groups), frozenset(left_out))


def _widths(evaluator: CostEvaluator, order: RemovalOrder, feasible: FeasibleWidths) -> IntArray:
    """Find the widest groups along the order of removal that keep to all limits."""

    def enough(counts: IntArray) -> npt.NDArray[np.bool_]:
        return evaluator.within(order.widths(feasible.original, counts))

    count = _first(enough, order.must - 1, len(order.groups))
    widths = order.widths(feasible.original, np.array([count]))[0]
    removed = np.arange(count - 1, order.must - 1, -1)
    while True:
        # Channels inside an absent branch cost nothing; they come back only if the branch does.
        before = feasible.space.alive(widths)
        back = removed[before[order.groups[removed]]]
        widths = _put_back(evaluator, order, widths, back)
        after = feasible.space.alive(widths)
        if np.array_equal(before, after):
            return widths
        removed = removed[after[order.groups[removed]] & ~before[order.groups[removed]]]


def _put_back(evaluator: CostEvaluator, order: RemovalOrder, widths: IntArray, removed: IntArray) -> IntArray:
    """Put removed steps back, the last removed first, wherever the limits allow it.

    As widths only grow, a group whose next step does not fit is finished. So each round drops
    all such groups at once, and puts back as many of the other steps as fit together.
    """
    while len(removed):
        groups, first = np.unique(order.groups[removed], return_index=True)
        trials = np.repeat(widths[None], len(groups), axis=0)
        trials[np.arange(len(groups)), groups] += order.sizes[removed[first]]
        fits = np.zeros(len(widths), dtype=np.bool_)
        fits[groups] = evaluator.within(trials)
        removed = removed[fits[order.groups[removed]]]
        back = replace(order, groups=order.groups[removed], sizes=-order.sizes[removed])

        def too_much(
            counts: IntArray, back: RemovalOrder = back, start: IntArray = widths
        ) -> npt.NDArray[np.bool_]:
            return ~evaluator.within(back.widths(start, counts))

        count = _first(too_much, 0, len(removed) + 1) - 1
        widths = back.widths(widths, np.array([count]))[0]
        removed = removed[count:]
    return widths


def _first(holds: Callable[[IntArray], npt.NDArray[np.bool_]], below: int, end: int) -> int:
    """Return the smallest number between ``below`` and ``end`` for which a condition holds, or ``end``.

    The condition holds for all numbers after the first for which it does.
    """
    while end - below > 1:
        tried = np.unique(np.linspace(below + 1, end - 1, _AT_ONCE).astype(np.int64))
        met = np.flatnonzero(holds(tried))
        place = int(met[0]) if len(met) else len(tried)
        edges = [below, *tried.tolist(), end]
        below, end = edges[place], edges[place + 1]
    return end


def _highest(scores: FloatArray, width: int) -> tuple[int, ...]:
    """Return the channels of the highest scores, in ascending order of these."""
    return tuple(np.argsort(scores, kind="stable")[len(scores) - width :].tolist())
