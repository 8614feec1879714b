"""Describe the result of pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.budget import WidthCurves
from secateur.criteria import Scores
from secateur.graph import ChannelGraph, Cost
from secateur.plan import PruningPlan
from secateur.recipes.cutting import Cut, branches_in_words
from secateur.recipes.latency_tuner import LatencyFit
from secateur.training.loop import FitState
from secateur.verification import Verification


@dataclass(frozen=True)
class PruneResult:
    """The result of pruning.

    Attributes:
        model: the smaller network.
        plan: what was removed by all cuts together, in channels of the original.
        verification: how the network compares with the masked original after the last cut.
        scores: of the original's channels, not normalised.
        curves: the damage of each width of its groups, if that was measured.
        cuts: every cut, in order, with its plan and its verification.
        fits: every phase of fine-tuning, in order; the last follows the last cut.
        graph: of the smaller network.
        latency: the measurement before the last cut, if the budget limits latency.

    Example:
        >>> import torch
        >>> import secateur as sec
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = sec.prune(net, torch.randn(2, 4), sec.Budget(channels=0.5))
        >>> result.plan.channels_removed, len(result.cuts), result.ok
        (4, 1, True)
    """

    model: nn.Module
    plan: PruningPlan
    verification: Verification
    scores: Scores
    curves: WidthCurves | None
    cuts: tuple[Cut, ...]
    fits: tuple[FitState, ...]
    graph: ChannelGraph
    latency: LatencyFit | None = None

    @property
    def cost_before(self) -> Cost:
        """Return the costs of the original."""
        return self.plan.cost_before

    @property
    def cost_after(self) -> Cost:
        """Return the costs of the smaller network."""
        return self.graph.cost()

    @property
    def ok(self) -> bool:
        """Return whether every cut was verified."""
        return self.verification.ok and all(cut.verification.ok for cut in self.cuts)

    def __str__(self) -> str:
        total = sum(group.channels for group in self.plan.graph.prunable)
        cuts = f"{len(self.cuts)} cut" + "s" * (len(self.cuts) != 1)
        before, after = self.cost_before, self.cost_after
        branches = f" and {branches_in_words(self.plan.branches_removed)}" if self.plan.without else ""
        lines = [
            f"removed {self.plan.channels_removed:,} of {total:,} prunable channels{branches} in {cuts}",
            f"MACs: {before.macs:,} to {after.macs:,} ({after.macs / max(1, before.macs):.1%})",
            f"parameters: {before.params:,} to {after.params:,} ({after.params / max(1, before.params):.1%})",
            str(self.verification),
        ]
        return "\n".join([*lines, *([str(self.latency)] if self.latency else [])])


def composed(graph: ChannelGraph, plans: Sequence[PruningPlan]) -> PruningPlan:
    """Combine plans that were applied one after the other into one plan for the original graph."""
    kept = {group.name: range(group.channels) for group in graph.groups}
    left: dict[str, Sequence[int]] = dict(kept)
    for plan in plans:
        for name, keep in plan.keep.items():
            left[name] = [left[name][place] for place in keep]
    return PruningPlan(
        graph,
        {name: tuple(channels) for name, channels in left.items() if len(channels) < len(kept[name])},
        tuple(name for plan in plans for name in plan.without),
    )
