"""Which plan comes next on the way to a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from torch import Tensor

from secateur.budget import Budget, make_plan
from secateur.graph import ChannelGraph
from secateur.plan import PruningPlan
from secateur.recipes.settings import PruneSettings


@dataclass(frozen=True)
class Step:
    """A plan, and whether it reaches the budget.

    Attributes:
        plan: for the graph as it is now.
        last: whether nothing is left to remove after it.
    """

    plan: PruningPlan
    last: bool


@dataclass(frozen=True)
class Route:
    """The way from a network to its budget, in steps.

    Attributes:
        start: what the original needs, by limit of the budget.
        goal: what may remain, by limit, in absolute amounts.
        settings: how large steps are, and what plans must keep to.
        ignore: names of groups whose channels all stay.
    """

    start: Mapping[str, int]
    goal: Mapping[str, int]
    settings: PruneSettings
    ignore: Sequence[str]
