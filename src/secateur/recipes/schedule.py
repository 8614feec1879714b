"""Plan the sequence of cuts until the budget is met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.budget import Budget, Widths, plan_within
from secateur.budget.choice_space import ChoiceSpace
from secateur.budget.feasible import feasible_within
from secateur.budget.limits import CostEvaluator, Limits, amount_of
from secateur.criteria import Scores, regularize_scores
from secateur.graph import ChannelGraph, Group, Role
from secateur.latency import LatencyModel
from secateur.plan import PruningPlan
from secateur.recipes.recipe import Recipe


@dataclass(frozen=True)
class ScheduledStep:
    """A plan, and whether it reaches the budget.

    Attributes:
        plan: for the present graph.
        last: whether no cut comes after it.
    """

    plan: PruningPlan
    last: bool


@dataclass(frozen=True)
class PruningSchedule:
    """The steps from a network to its budget; created by :meth:`of`.

    Attributes:
        start: the costs of the unpruned network, by quantity.
        goal: the largest final amount of each limited quantity.
        recipe: the size of the steps, and how plans are made.
        widths: which widths groups may have.
        latency: predicts milliseconds, if they count.
        share: the largest share that each group may keep, if there is one uniform cut and the budget is a
            share of the channels.
    """

    start: Mapping[str, int]
    goal: Mapping[str, int]
    recipe: Recipe
    widths: Widths
    latency: LatencyModel | None = None
    share: float | None = None

    @classmethod
    def of(
        cls,
        budget: Budget,
        graph: ChannelGraph,
        recipe: Recipe,
        widths: Widths,
        latency: LatencyModel | None = None,
    ) -> PruningSchedule:
        """Make the schedule for a budget, and check that it can be met.

        Args:
            budget: what may remain of the network of ``graph``.
            graph: of the whole network.
            recipe: the size of the steps.
            widths: which widths groups may have.
            latency: predicts milliseconds, if they count.

        Raises:
            BudgetError: the budget cannot be met.
        """
        start = CostEvaluator(ChoiceSpace.of(graph), {}, latency).original
        once = recipe.steps == 1 and recipe.channels_per_step is None and not recipe.filters_only
        limits = budget.limits(graph, latency, uniform=once and recipe.allocation == "uniform")
        goal = dict(limits.amounts)
        if recipe.filters_only:
            others = [group for group in graph.prunable if not _is_filters(group, graph)]
            widths = widths.changed(ignore=(*widths.ignore, *(group.name for group in others)))
            if budget.channels is not None and others:
                # The share or amount refers to filters; the other channels are added.
                rest = sum(group.channels for group in others)
                goal["channels"] = rest + amount_of(budget.channels, start["channels"] - rest)
        feasible_within(graph, goal, widths, latency)  # or a BudgetError
        return cls(start, goal, recipe, widths, latency, limits.share)

    @property
    def steps(self) -> int | None:
        """Return the number of cuts, if it is known beforehand."""
        return None if self.recipe.channels_per_step else self.recipe.steps

    def step(self, graph: ChannelGraph, ranking: Mapping[str, Any], number: int) -> ScheduledStep:
        """Make the next plan.

        Args:
            graph: of the present network.
            ranking: scores of its channels, or width curves of its groups.
            number: of this step, from 1.

        Returns:
            A plan; it removes nothing if the goal of the step was reached before.
        """
        size = self.recipe.channels_per_step
        if size is None:
            last = number >= self.recipe.steps
            limits = self.goal if last else self.step_limits(number / self.recipe.steps)
            return ScheduledStep(self.plan(graph, ranking, limits), last)
        whole = self.plan(graph, ranking, self.goal)
        channels = _prunable_channels(graph)
        if channels - _prunable_channels(graph.after(whole)) <= size:
            return ScheduledStep(whole, last=True)
        left = channels - size
        return ScheduledStep(self.plan(graph, ranking, {"channels": left}), last=False)

    def step_limits(self, progress: float) -> dict[str, int]:
        """Compute what may remain after part of the steps; each step leaves the same share.

        Args:
            progress: share of the steps that are done.

        >>> schedule = PruningSchedule({"macs": 1600}, {"macs": 100}, Recipe(), Widths())
        >>> schedule.step_limits(0.5)
        {'macs': 400}
        """
        return {
            name: round(self.start[name] * (goal / self.start[name]) ** progress)
            for name, goal in self.goal.items()
            if name in self.start and goal < self.start[name]
        }

    def plan(self, graph: ChannelGraph, ranking: Mapping[str, Any], limits: Mapping[str, int]) -> PruningPlan:
        """Make the plan within limits according to the recipe."""
        normalize, cost = self.recipe.normalize, self.recipe.cost_regularization
        if cost.quantity is not None and isinstance(ranking, Scores):
            # The rate is in units of normalised scores, which must not be normalised again.
            ranking = regularize_scores(ranking.normalized(normalize), graph, cost.quantity, cost.rate)
            normalize = "none"
        return plan_within(
            graph,
            ranking,
            Limits(limits, self.share),
            widths=self.widths,
            allocation=self.recipe.allocation,
            normalize=normalize,
            latency=self.latency,
        )


def _prunable_channels(graph: ChannelGraph) -> int:
    return sum(group.channels for group in graph.prunable)


def _is_filters(group: Group, graph: ChannelGraph) -> bool:
    """Return whether a convolution writes the channels: its weight has dimensions for positions."""
    return any(len(graph.tensors[member.tensor]) > 2 for member in group.roles(Role.PRODUCER))
