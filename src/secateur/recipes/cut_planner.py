"""Plan the cuts of a network from its graph, and choose among graphs with other units of attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import nn

from secateur.budget import Budget, Widths
from secateur.errors import BudgetError
from secateur.graph import ChannelGraph, ExampleInputs
from secateur.graph.cutting.tensors import copy_with
from secateur.plan import PruningPlan
from secateur.recipes.attention import curves_of_same_groups, scores_fit, unit_of
from secateur.recipes.context import RecipeContext
from secateur.recipes.latency_tuner import LatencyFit, LatencyOptions
from secateur.recipes.measuring import Measurements, Subject, measure, measure_damage
from secateur.recipes.schedule import PruningSchedule
from secateur.training.events import report_note
from secateur.training.resume import Entry

_ATTENTION = "attention"
"""The part of the journal that keeps which unit of attention was chosen."""

PlanInTime = Callable[[Callable[[Mapping[str, int]], PruningPlan], nn.Module], LatencyFit]
"""Makes a plan whose measured time is within the limit, from what makes one within limits and the network."""


@dataclass(frozen=True)
class CutPlanner:
    """A graph of the whole network, and how its plans are made; created by :meth:`of`.

    Attributes:
        graph: of the network before the first cut.
        schedule: makes the plans.
        plan_in_time: makes the last one, if the budget limits latency.
    """

    graph: ChannelGraph
    schedule: PruningSchedule
    plan_in_time: PlanInTime | None

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        subject: Subject,
        budget: Budget,
        widths: Widths,
        example_inputs: ExampleInputs,
    ) -> CutPlanner:
        """Plan the cuts of a graph, after its operators were measured if their time counts.

        Args:
            graph: of the whole network.
            subject: the network and the recipe.
            budget: what may remain.
            widths: which widths groups may have.
            example_inputs: that the network was traced with.

        Raises:
            BudgetError: the budget cannot be met.
            StoppedError: the user stopped it.
        """
        model, context = subject.model, subject.context
        if budget.latency is None and widths.multiple_of != "auto":
            return cls(graph, PruningSchedule.of(budget, graph, subject.recipe, widths), None)
        options = subject.training.latency or LatencyOptions()
        tuner = options.tuner(model, graph, example_inputs, context.callbacks, context.interruption)
        schedule = PruningSchedule.of(budget, graph, subject.recipe, widths, tuner.table)
        if budget.latency is None:
            return cls(graph, schedule, None)
        # A share of the time refers to the whole network, which is measured beside the smaller one.
        whole = copy_with(model, {})
        return cls(graph, schedule, partial(tuner.plan, budget.latency, schedule.goal, whole=whole))


def choose_planner(
    graphs: Sequence[ChannelGraph], planner_of: Callable[[ChannelGraph], CutPlanner], subject: Subject
) -> tuple[CutPlanner, Measurements | None]:
    """Choose among units of attention by the damage of the plan for the whole budget.

    A run that is resumed, or that starts from earlier measurements, keeps the unit that it had.

    Args:
        graphs: of the network, one for each unit.
        planner_of: plans the cuts of a graph.
        subject: the network and the recipe.

    Returns:
        The planner, and what was measured of the whole network to choose it, if anything was.

    Raises:
        BudgetError: the budget can be met with none of the graphs.
    """
    if len(graphs) == 1:
        return planner_of(graphs[0]), None
    graph = _graph_as_before(graphs, subject.context)
    if graph is not None:
        planner, found = planner_of(graph), None
    else:
        planner, found = _least_damaging(_reachable(graphs, planner_of), subject)
    choice = next(number for number, graph in enumerate(graphs) if graph is planner.graph)
    subject.context.journal.put(_ATTENTION, Entry({"choice": choice}))
    return planner, found


def _graph_as_before(graphs: Sequence[ChannelGraph], context: RecipeContext) -> ChannelGraph | None:
    """Return the graph of the run that is resumed, or of the earlier measurements, if there are any."""
    chosen = context.journal.recall(_ATTENTION)
    if context.measured is not None:
        scores = context.measured.scores
        return next((graph for graph in graphs if scores_fit(graph, scores)), graphs[0])
    return None if chosen is None else graphs[chosen.facts["choice"]]


def _reachable(
    graphs: Sequence[ChannelGraph], planner_of: Callable[[ChannelGraph], CutPlanner]
) -> list[CutPlanner]:
    """Plan the cuts of each graph with which the budget can be met."""
    planners, errors = [], []
    for graph in graphs:
        try:
            planners.append(planner_of(graph))
        except BudgetError as error:
            errors.append(error)
    if not planners:
        raise errors[0]
    return planners


def _least_damaging(planners: Sequence[CutPlanner], subject: Subject) -> tuple[CutPlanner, Measurements]:
    """Measure the network with each graph, and choose the one whose plan changes the outputs least."""
    context, first = subject.context, planners[0].graph
    measured: list[Measurements] = []
    damages: list[float] = []
    for planner in planners:
        graph, schedule = planner.graph, planner.schedule
        curves = measured[0].curves if measured else None
        known = None if curves is None else curves_of_same_groups(graph, first, curves)
        found = measure(subject, graph, curves=known)
        plan = schedule.plan(graph, found.ranking(subject.recipe), schedule.goal)
        damages.append(measure_damage(subject, graph, plan))
        measured.append(found)
    best = context.ranks.broadcast(int(np.argmin(damages)))
    for place, (planner, damage) in enumerate(zip(planners, damages, strict=True)):
        chosen = "chosen" if place == best else "not chosen"
        report_note(
            context.callbacks,
            f"attention: removing {unit_of(planner.graph)} changes the outputs by {damage:.3g}, {chosen}",
        )
    measured[best].report(context.callbacks)
    return planners[best], measured[best]
