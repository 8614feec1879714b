"""Trials: one group cut alone, and where in the forward pass that is first felt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.graph import ChannelGraph, Group
from secateur.graph.masked import Removed
from secateur.recovery.script import Script


@dataclass(frozen=True)
class _Keep:
    """A plan in its barest form."""

    keep: Mapping[str, Sequence[int]]


def cut_alone(graph: ChannelGraph, group: Group, kept: Sequence[int]) -> Removed:
    """The slots that are gone when only these channels of one group stay, and all of the others."""
    return graph.after(_Keep({group.name: sorted(kept)})).removed


def first_step(script: Script, removed: Removed) -> int | None:
    """The first step of a forward pass that feels a cut; ``None`` if none does."""
    wiring = script.wiring
    felt = {read.node for read in wiring.reads if removed[read.labels].any()}
    for item in wiring.statistics:
        vectors = (labels for _, value in item.arguments for labels in value.labels)
        if any(labels is not None and removed[labels].any() for labels in vectors):
            felt.add(item.node)
    return next((step for step, node in enumerate(script.nodes) if node.name in felt), None)
