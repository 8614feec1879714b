"""The choice of channels: the plan that gives up least by score and keeps to every limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from secateur.budget.curved import plan_by_curves
from secateur.budget.damage import WidthCurves
from secateur.budget.limits import Budget, Limit, Meter
from secateur.budget.order import Order, Scope, comparable, removal_order
from secateur.budget.room import Bounds, Ladders, Room, Rules, bounds
from secateur.budget.shortfall import shortfall
from secateur.criteria import Scores
from secateur.errors import BudgetError, UsageError
from secateur.graph import ChannelGraph, Cost
from secateur.graph.groups import IntArray
from secateur.latency import LatencyModel, efficient_widths
from secateur.plan import PruningPlan

RoundTo = int | Literal["auto"]
"""What widths are multiples of; ``"auto"`` for those that a device runs well."""

_AT_ONCE = 32  # widths that one round of a search tries: three rounds find one place in 30,000


def make_plan(
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    budget: Budget,
    *,
    latency: LatencyModel | None = None,
    normalize: str = "l2",
    scope: Scope = "global",
    round_to: RoundTo = 1,
    min_channels: int = 1,
    floors: Bounds = None,
    caps: Bounds = None,
    ignore: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
) -> PruningPlan:
    """The plan that removes the channels of the lowest scores until the budget is met.

    Channels go in the order of their normalised scores, up to the first plan that meets every
    limit; then channels come back, the highest score first, wherever the limits allow it. So no
    removed channel can be put back without breaking a limit, and a limit on channels alone is met
    exactly. Costs are computed from the widths; the model is not run. Equal inputs give equal
    plans: of equal scores, the first in the network goes first.

    Args:
        graph: the graph of the network.
        scores: for each prunable group one number per channel, larger for channels that matter
            more: ``Scores``, or a mapping of group names to tensors, arrays or sequences. Groups
            that ``Scores`` names as unscored stay whole. Or ``WidthCurves``: then the widths of
            least measured damage are chosen, no less than a tenth of a group while the budget has room
            for that, and ``normalize`` and ``scope`` mean nothing.
        budget: what may remain.
        latency: the network's times on this device, from :func:`secateur.latency_table`; for budgets that
            limit latency, and for ``round_to="auto"``.
        normalize: how scores of different groups are made comparable: ``"l2"``, ``"l1"``,
            ``"max"``, ``"min-max"`` or ``"none"``.
        scope: ``"global"`` ranks the channels of all groups together; ``"uniform"`` takes the
            same share from every group, as nearly as the limits allow.
        round_to: kept widths are multiples of it, or the whole group; ``"auto"`` takes those widths of each
            group that the device runs well. A unit of several channels that go at once is ranked by its
            mean score.
        min_channels: every group keeps at least so many (a smaller group stays whole).
        floors: what must stay, at least: an integer of channels or a float share (rounded up) for
            every group, or a mapping of group names or patterns to such bounds. Where several
            apply, the strictest holds.
        caps: what may stay, at most, given likewise (shares are rounded down).
        ignore: groups to leave alone, by name; or modules, by path or pattern (``"layer4.*"``):
            the channels that they, and all modules inside them, write or carry stay whole. To
            keep what a module reads as well, give it to ``trace``.
        only: groups or modules to cut, named likewise; all others stay whole. All, if not given.

    Returns:
        The plan; it removes nothing if the budget is met already.

    Raises:
        BudgetError: if the budget cannot be met; says what the least is, and what holds it up.
        UsageError: if scores are missing or unfit, or an argument is out of range.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = trace(net, torch.randn(1, 4))
        >>> plan = make_plan(graph, {"0": [5, 3, 8, 1, 9, 7, 2, 6]}, Budget(macs=0.5))
        >>> plan.removed, plan.cost_after.macs
        ({'0': (0, 1, 3, 6)}, 24)
    """
    if scope not in get_args(Scope):
        raise UsageError(f"unknown scope {scope!r}: choose one of {', '.join(get_args(Scope))}")
    rules = Rules(
        steps_of(round_to, graph, latency), min_channels, floors, caps, ignore, only, _unscored(scores)
    )
    if isinstance(scores, WidthCurves):
        return plan_by_curves(graph, scores, budget, rules, latency)
    room = rules.room(graph)
    meter = Meter(graph, budget.amounts(graph, latency), latency)
    order = removal_order(comparable(graph, scores, room, normalize), room, scope)
    if not meter.within(room.least):
        raise BudgetError(shortfall(meter, rules))
    return _plan(graph, order, _widths(meter, order, room))


def uniform_plan(
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    keep: Limit | Mapping[str, Limit] = 0.5,
    *,
    round_to: int = 1,
    min_channels: int = 1,
    floors: Bounds = None,
    ignore: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
) -> PruningPlan:
    """The plan that keeps the same share of every group, whatever that costs.

    Args:
        graph: the graph of the network.
        scores: as for ``make_plan``; they only decide within each group.
        keep: what stays: a float share (rounded down, but at least one channel) or an integer of
            channels for every group, or a mapping of group names or patterns to such amounts.
            Groups that no name fits stay whole.
        round_to: kept widths are multiples of it, or the whole group.
        min_channels: every group keeps at least so many.
        floors: as for ``make_plan``; they win over ``keep``.
        ignore: as for ``make_plan``.
        only: as for ``make_plan``.

    Returns:
        The plan.

    Raises:
        UsageError: if scores are missing or unfit, or an argument is out of range.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> uniform_plan(trace(net, torch.randn(1, 4)), {"0": range(8)}, keep=0.5).removed
        {'0': (0, 1, 2, 3)}
    """
    room = Rules(round_to, min_channels, floors, None, ignore, only, _unscored(scores)).room(graph)
    targets = bounds(graph, keep, "keep")
    order = removal_order(comparable(graph, scores, room, "none"), room, "uniform")
    return _plan(graph, order, room.below(targets))


def reachable(
    graph: ChannelGraph,
    *,
    round_to: int = 1,
    min_channels: int = 1,
    floors: Bounds = None,
    caps: Bounds = None,
    ignore: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
) -> tuple[Cost, Cost]:
    """The range of costs that plans can reach.

    Args:
        graph: the graph of the network.
        round_to: as for ``make_plan``, like all that follow.
        min_channels: what every group keeps.
        floors: what must stay of groups.
        caps: what may stay of groups.
        ignore: groups and modules to leave alone.
        only: groups and modules to cut, if not all.

    Returns:
        The least cost (every quantity has its least there), and the cost of the network as it is.

    Raises:
        UsageError: if a name is unknown, or an argument is out of range.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> least, now = reachable(trace(net, torch.randn(1, 4)), min_channels=2)
        >>> least.params, now.params
        (16, 58)
    """
    least = Rules(round_to, min_channels, floors, caps, ignore, only).room(graph).least
    return graph.cost_model.cost(least), graph.cost()


def steps_of(round_to: RoundTo, graph: ChannelGraph, latency: LatencyModel | None) -> int | Ladders:
    """The widths that ``round_to`` leaves: a step, or the efficient widths of each group.

    Raises:
        UsageError: the device's times are needed and not there.
    """
    if round_to != "auto":
        return round_to
    if latency is None:
        raise UsageError(
            "round_to='auto' needs the network's times on this device: give the table that "
            "latency_table(model, graph, example_inputs) measures, as latency; or a number to round to"
        )
    widths = np.array([group.channels for group in graph.groups], dtype=np.int64)
    return efficient_widths(latency, widths)


def _unscored(scores: Mapping[str, Any]) -> frozenset[str]:
    if isinstance(scores, WidthCurves):
        return frozenset(scores.unmeasured)
    return frozenset(scores.unscored) if isinstance(scores, Scores) else frozenset()


def _widths(meter: Meter, order: Order, room: Room) -> IntArray:
    """The widest groups on the way of the order that keep to all limits."""

    def enough(counts: IntArray) -> npt.NDArray[np.bool_]:
        return meter.within(order.widths(room.widths, counts))

    count = _first(enough, order.must - 1, len(order.groups))
    widths = order.widths(room.widths, np.array([count]))[0]
    return _put_back(meter, order, widths, np.arange(count - 1, order.must - 1, -1))


def _put_back(meter: Meter, order: Order, widths: IntArray, removed: IntArray) -> IntArray:
    """Lets removed units back in, in turn, wherever the limits allow it.

    As widths only grow, a group whose next unit does not fit is done with. So each round drops
    all such groups at once, and lets in as many of the other units as fit together.
    """
    while len(removed):
        groups, first = np.unique(order.groups[removed], return_index=True)
        trials = np.repeat(widths[None], len(groups), axis=0)
        trials[np.arange(len(groups)), groups] += order.sizes[removed[first]]
        fits = np.zeros(len(widths), dtype=np.bool_)
        fits[groups] = meter.within(trials)
        removed = removed[fits[order.groups[removed]]]
        back = replace(order, groups=order.groups[removed], sizes=-order.sizes[removed])

        def too_much(counts: IntArray, back: Order = back, start: IntArray = widths) -> npt.NDArray[np.bool_]:
            return ~meter.within(back.widths(start, counts))

        count = _first(too_much, 0, len(removed) + 1) - 1
        widths = back.widths(widths, np.array([count]))[0]
        removed = removed[count:]
    return widths


def _first(holds: Callable[[IntArray], npt.NDArray[np.bool_]], below: int, end: int) -> int:
    """The first number above ``below`` for which a condition holds, ``end`` if none below that does.

    The condition holds for all numbers after the first for which it does.
    """
    while end - below > 1:
        tried = np.unique(np.linspace(below + 1, end - 1, _AT_ONCE).astype(np.int64))
        met = np.flatnonzero(holds(tried))
        place = int(met[0]) if len(met) else len(tried)
        edges = [below, *tried.tolist(), end]
        below, end = edges[place], edges[place + 1]
    return end


def _plan(graph: ChannelGraph, order: Order, widths: IntArray) -> PruningPlan:
    """The plan that leaves each group a width, of its last channels in the order."""
    return PruningPlan(
        graph,
        {
            group.name: tuple(channels[group.channels - width :].tolist())
            for group, channels, width in zip(graph.groups, order.channels, widths, strict=True)
            if width < group.channels
        },
    )
