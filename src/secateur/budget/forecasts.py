"""Predict what a network can be reduced to, and what a plan would need, before anything is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from secateur.budget.choice_space import ChoiceSpace
from secateur.budget.feasible import feasible_widths, width_options
from secateur.budget.limits import NANOSECONDS, QUANTITIES, Budget, CostEvaluator, amount_words
from secateur.budget.planning import make_plan
from secateur.budget.widths import Widths
from secateur.errors import BudgetError
from secateur.formats import table
from secateur.graph import ChannelGraph, Cost
from secateur.latency import LatencyModel
from secateur.plan import PruningPlan


@dataclass(frozen=True)
class Reach:
    """The range of one quantity; times in nanoseconds.

    Attributes:
        now: the amount for the unpruned network, which is the maximum.
        least: the minimum, when every group is as narrow as it may be.
        allowed: the largest amount that the budget permits, if it limits the quantity.
        planned: the amount after the plan, if there is one.
    """

    now: int
    least: int
    allowed: int | None = None
    planned: int | None = None


@dataclass(frozen=True)
class Forecast:
    """What plans for a network can reach.

    Attributes:
        reach: by quantity: ``params``, ``macs``, ``bytes``, ``memory``, ``channels``, and ``latency`` where
            it was measured.
        plan: the plan for the budget, if a plan was requested and the budget can be met.
        impossible: why the budget cannot be met, in one line.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(forecast(trace(net, torch.randn(1, 4)), Budget(macs=0.5), {"0": range(8)}))
                              now  least  allowed      planned
        parameters             58      9            30 (51.7%)
        MACs of one example    48      6       24   24 (50.0%)
        bytes of parameters   232     36           120 (51.7%)
        bytes of activations   80     28            48 (60.0%)
        prunable channels       8      1             4 (50.0%)
    """

    reach: Mapping[str, Reach]
    plan: PruningPlan | None = None
    impossible: str | None = None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "now", "least", "allowed", "planned")]
        for name, reach in self.reach.items():
            numbers = [reach.now, reach.least, reach.allowed, reach.planned]
            shown = ["" if number is None else _shown(name, number) for number in numbers]
            if reach.planned is not None:
                shown[-1] += f" ({reach.planned / max(1, reach.now):.1%})"
            rows.append((QUANTITIES[name].title, *shown))
        used = [column for column in range(5) if any(row[column] for row in rows[1:])]
        lines = table([[row[column] for column in used] for row in rows])
        return "\n".join([*lines, *([self.impossible] if self.impossible else [])])

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; times in milliseconds."""
        return {
            "reach": {
                name: {
                    field: _plain(name, getattr(reach, field))
                    for field in ("now", "least", "allowed", "planned")
                }
                for name, reach in self.reach.items()
            },
            "impossible": self.impossible,
        }


def reachable(
    graph: ChannelGraph, *, widths: Widths | None = None, latency: LatencyModel | None = None
) -> tuple[Cost, Cost]:
    """Compute the range of costs that plans can reach.

    Args:
        graph: the graph of the network.
        widths: which widths groups may have, as for ``make_plan``.
        latency: the network's times on this device, for ``Widths(multiple_of="auto")``.

    Returns:
        The least cost (every quantity has its least there), and the cost of the network as it is.

    Raises:
        UsageError: a name is unknown.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> least, now = reachable(trace(net, torch.randn(1, 4)), widths=Widths(min_channels=2))
        >>> least.params, now.params
        (16, 58)
    """
    reach, now = forecast(graph, widths=widths, latency=latency).reach, graph.cost()
    return Cost(**{name: reach[name].least for name in asdict(now)}), now


def forecast(
    graph: ChannelGraph,
    budget: Budget | None = None,
    scores: Mapping[str, Any] | None = None,
    *,
    widths: Widths | None = None,
    latency: LatencyModel | None = None,
) -> Forecast:
    """Predict what is reachable, and what the plan for a budget would need of every quantity.

    Args:
        graph: the graph of the network.
        budget: what may remain; without it, only what is reachable is computed.
        scores: for the plan, as for :func:`secateur.make_plan`; without them, there is no plan.
        widths: which widths groups may have, as for ``make_plan``.
        latency: the network's times on this device, if they are to be part of it.

    Returns:
        The forecast. An impossible budget is not an error here: the forecast explains it.

    Raises:
        UsageError: an argument is out of range, or latency is limited and nothing predicts it.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> found = forecast(trace(net, torch.randn(1, 4)), Budget(macs=0.1), {"0": range(8)})
        >>> found.reach["macs"]
        Reach(now=48, least=6, allowed=4, planned=None)
        >>> found.impossible.split(".")[0]
        'no plan meets the budget'
    """
    widths = widths or Widths()
    limits = budget.amounts(graph, latency) if budget is not None else {}
    feasible = feasible_widths(graph, widths, width_options(widths, graph, latency))
    evaluator = CostEvaluator(feasible.space, limits, latency)
    now, least = evaluator.original, evaluator.least_of(feasible.original, feasible.least)
    plan, impossible, planned = None, None, dict[str, int]()
    if budget is not None and scores is not None:
        try:
            plan = make_plan(graph, scores, budget, widths=widths, latency=latency)
        except BudgetError as error:
            impossible = str(error)
        else:
            depth = feasible.space.depth
            here = [not set(unit) & set(plan.without) for unit in depth.units]
            untied = replace(evaluator, space=ChoiceSpace.of(graph, depth))
            planned = untied.named(np.append(plan.widths, np.array(here, dtype=np.int64)))
    reach = {name: Reach(now[name], least[name], limits.get(name), planned.get(name)) for name in now}
    return Forecast(reach, plan, impossible)


def _shown(name: str, number: int) -> str:
    return amount_words(name, number) if name == "latency" else f"{number:,}"


def _plain(name: str, number: int | None) -> float | int | None:
    return number / NANOSECONDS if name == "latency" and number is not None else number
