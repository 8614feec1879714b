"""Forecasts: what a network could be made to cost, and what a plan would, before anything is cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.budget.choice import RoundTo, make_plan, steps_of
from secateur.budget.limits import QUANTITIES, Budget, Meter, words_for
from secateur.budget.room import Bounds, Rules
from secateur.budget.times import Milliseconds
from secateur.errors import BudgetError
from secateur.graph import ChannelGraph
from secateur.latency import LatencyModel
from secateur.plan import PruningPlan


@dataclass(frozen=True)
class Reach:
    """How far one quantity goes; times in nanoseconds.

    Attributes:
        now: what the network needs as it is: the most.
        least: what it needs at least, when every group is as narrow as it may be.
        allowed: what a budget allows, if it limits the quantity.
        planned: what it needs after the plan, if there is one.
    """

    now: int
    least: int
    allowed: int | None = None
    planned: int | None = None


@dataclass(frozen=True)
class Forecast:
    """What plans for a network can cost.

    Attributes:
        reach: by quantity: ``params``, ``macs``, ``bytes``, ``memory``, ``channels``, and ``latency`` where
            it was measured.
        plan: the plan for the budget, if one was asked for and can be met.
        impossible: why it cannot, in a line.

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
            rows.append((QUANTITIES[name], *shown))
        used = [column for column in range(5) if any(row[column] for row in rows[1:])]
        widths = [max(len(row[column]) for row in rows) for column in used]
        lines = [
            "  ".join(
                row[column].rjust(width) if column else row[column].ljust(width)
                for column, width in zip(used, widths, strict=True)
            )
            for row in rows
        ]
        return "\n".join([*lines, *([self.impossible] if self.impossible else [])])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times in milliseconds."""
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


def forecast(
    graph: ChannelGraph,
    budget: Budget | None = None,
    scores: Mapping[str, Any] | None = None,
    *,
    latency: LatencyModel | None = None,
    round_to: RoundTo = 1,
    min_channels: int = 1,
    floors: Bounds = None,
    caps: Bounds = None,
    ignore: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
) -> Forecast:
    """Says what is reachable, and what the plan for a budget would cost in all units.

    Args:
        graph: the graph of the network.
        budget: what may remain; without, only what is reachable is said.
        scores: what the plan goes by, as for :func:`secateur.make_plan`; without, there is no plan.
        latency: the network's times on this device, if they are to be part of it.
        round_to: as for ``make_plan``, like all that follow.
        min_channels: what every group keeps.
        floors: what must stay of groups.
        caps: what may stay of groups.
        ignore: groups and modules to leave alone.
        only: groups and modules to cut, if not all.

    Returns:
        The forecast. An impossible budget is no error here: the forecast says why.

    Raises:
        UsageError: an argument is out of range, or latency is limited and there is nothing that tells it.

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
    rules = Rules(steps_of(round_to, graph, latency), min_channels, floors, caps, ignore, only)
    amounts = budget.amounts(graph, latency) if budget is not None else {}
    meter = Meter(graph, amounts, latency)
    room = rules.room(graph)
    now, least = meter.named(room.widths), meter.least_of(room.widths, room.least)
    plan, impossible, planned = None, None, dict[str, int]()
    if budget is not None and scores is not None:
        try:
            plan = make_plan(
                graph,
                scores,
                budget,
                latency=latency,
                round_to=round_to,
                min_channels=min_channels,
                floors=floors,
                caps=caps,
                ignore=ignore,
                only=only,
            )
        except BudgetError as error:
            impossible = str(error)
        else:
            planned = meter.named(plan.widths)
    reach = {name: Reach(now[name], least[name], amounts.get(name), planned.get(name)) for name in now}
    return Forecast(reach, plan, impossible)


def _shown(name: str, number: int) -> str:
    return words_for(name, number) if name == "latency" else f"{number:,}"


def _plain(name: str, number: int | None) -> float | int | None:
    return float(Milliseconds.of_nanoseconds(number)) if name == "latency" and number is not None else number
