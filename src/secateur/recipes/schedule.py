"""Which plan comes next on the way to a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from secateur.budget import Budget, Widths, plan_within
from secateur.budget.limits import CostEvaluator, amount_of
from secateur.criteria import Scores, charged
from secateur.graph import ChannelGraph, Group, Role
from secateur.latency import LatencyModel
from secateur.plan import PruningPlan
from secateur.recipes.settings import PruneSettings


@dataclass(frozen=True)
class Step:
    """A plan, and whether it reaches the budget.

    Attributes:
        plan: for the graph as it is now.
        last: whether no cut comes after it.
    """

    plan: PruningPlan
    last: bool


@dataclass(frozen=True)
class Route:
    """The way from a network to its budget; made by :meth:`to`.

    Attributes:
        start: what the network needs as it is, by limit.
        goal: what may remain in the end, by limit, in absolute amounts.
        settings: how large the steps are, and what every plan keeps to.
        ignore: names of groups whose channels all stay.
        only: names of groups or modules to cut, if not all.
        latency: tells milliseconds, if they count.
    """

    start: Mapping[str, int]
    goal: Mapping[str, int]
    settings: PruneSettings
    ignore: tuple[str, ...]
    only: tuple[str, ...] = ()
    latency: LatencyModel | None = None

    @classmethod
    def to(
        cls,
        budget: Budget,
        graph: ChannelGraph,
        settings: PruneSettings,
        only: tuple[str, ...] = (),
        latency: LatencyModel | None = None,
    ) -> Route:
        """Looks the way to a budget over before the first step is taken.

        Args:
            budget: what may remain of the network as it is in ``graph``.
            graph: of the whole network.
            settings: how large the steps are.
            only: names of groups or modules to cut, if not all.
            latency: tells milliseconds, if they count.

        Raises:
            BudgetError: the budget cannot be met.
        """
        ignore = tuple(g.name for g in graph.prunable if settings.filters_only and not _is_filters(g, graph))
        start = CostEvaluator(graph, {}, latency).original
        goal = budget.amounts(graph, latency)
        if budget.channels is not None and ignore:
            # A share, or an amount, of filters is meant; the other channels come on top.
            others = sum(graph[name].channels for name in ignore)
            goal["channels"] = others + amount_of(budget.channels, start["channels"] - others)
        route = cls(start, goal, settings, ignore, only, latency)
        ones = {group.name: torch.ones(group.channels) for group in graph.prunable}
        replace(route, settings=settings.model_copy(update={"allocate": "global"})).plan(graph, ones, goal)
        return route

    @property
    def steps(self) -> int | None:
        """Number of cuts, if it is known beforehand."""
        return None if self.settings.channels_per_step else self.settings.steps

    def step(self, graph: ChannelGraph, scores: Mapping[str, Any], number: int) -> Step:
        """The next plan.

        Args:
            graph: of the network as it is now.
            scores: of its channels, or the width curves of its groups.
            number: of this step, from 1.

        Returns:
            A plan that may remove nothing, if what the step should reach was reached before.
        """
        size = self.settings.channels_per_step
        if size is None:
            last = number >= self.settings.steps
            limits = self.goal if last else self.milestone(number / self.settings.steps)
            return Step(self.plan(graph, scores, limits), last)
        whole = self.plan(graph, scores, self.goal)
        if whole.channels_removed <= size:
            return Step(whole, last=True)
        return Step(self.plan(graph, scores, {"channels": _channels(graph) - size}), last=False)

    def milestone(self, progress: float) -> dict[str, int]:
        """What may remain after part of the way, each step leaving the same share.

        Args:
            progress: share of the steps that are over.

        >>> route = Route({"macs": 1600}, {"macs": 100}, PruneSettings(), ())
        >>> route.milestone(0.5)
        {'macs': 400}
        """
        return {
            name: round(self.start[name] * (goal / self.start[name]) ** progress)
            for name, goal in self.goal.items()
            if name in self.start and goal < self.start[name]
        }

    def plan(self, graph: ChannelGraph, scores: Mapping[str, Any], limits: Mapping[str, int]) -> PruningPlan:
        """The plan within limits that keeps to the settings."""
        settings, normalize = self.settings, self.settings.normalize
        if settings.charge is not None and isinstance(scores, Scores):
            # Charges are in units of normalised scores, which must not be normalised again.
            scores = charged(scores.normalized(normalize), graph, settings.charge, settings.charge_rate)
            normalize = "none"
        return plan_within(
            graph,
            scores,
            limits,
            latency=self.latency,
            normalize=normalize,
            allocation=self.settings.allocate,
            widths=Widths(
                multiple_of=self.settings.round_to,
                min_channels=self.settings.min_channels,
                ignore=self.ignore,
                only=self.only,
            ),
        )


def _channels(graph: ChannelGraph) -> int:
    return sum(group.channels for group in graph.prunable)


def _is_filters(group: Group, graph: ChannelGraph) -> bool:
    """Whether a convolution writes the channels: its weight has dimensions for positions."""
    return any(len(graph.tensors[member.tensor]) > 2 for member in group.roles(Role.PRODUCER))
