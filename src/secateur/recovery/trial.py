"""Trials: one group cut alone, and where in the forward pass that is first felt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from secateur.graph import ChannelGraph, Group
from secateur.graph.channel_graph import Keep
from secateur.graph.masked import Removed
from secateur.graph.wiring import Wiring
from secateur.recovery.run import Run
from secateur.recovery.script import Script


def cut_alone(graph: ChannelGraph, group: Group, kept: Sequence[int]) -> Removed:
    """The slots that are gone when only these channels of one group stay, and all of the others."""
    return graph.after(Keep({group.name: sorted(kept)})).removed


def first_step(script: Script, removed: Removed) -> int | None:
    """The first step of a forward pass that feels a cut; ``None`` if none does."""
    felt = _reading(script.wiring, removed) | _counting(script.wiring, removed)
    return next((step for step, node in enumerate(script.nodes) if node.name in felt), None)


def is_silent(run: Run, removed: Removed) -> bool:
    """Whether a cut changes nothing, because all that it masks is zero for all examples already.

    Args:
        run: a network that stands at the first step that feels the cut.
        removed: the slots that are gone.

    Returns:
        False also where the cut is felt at later steps, or by a statistic: there it is not looked at.
    """
    node, wiring = run.script.nodes[run.at], run.script.wiring
    if _reading(wiring, removed) != {node.name} or _counting(wiring, removed):
        return False
    for read in wiring.reads:
        gone = torch.from_numpy(np.flatnonzero(removed[read.labels]))
        if not len(gone):
            continue
        values: Any = node.args[read.argument]
        source = values if read.place is None else values[read.place]
        if not run.holds(source) or any(
            value.index_select(read.dim, gone.to(value.device)).any()
            for value in (run.value(portion, source) for portion in range(len(run.portions)))
        ):
            return False
    return True


def _reading(wiring: Wiring, removed: Removed) -> set[str]:
    """Operators that contract over channels of a cut."""
    return {read.node for read in wiring.reads if removed[read.labels].any()}


def _counting(wiring: Wiring, removed: Removed) -> set[str]:
    """Operators that take a statistic over channels of a cut."""
    return {
        item.node
        for item in wiring.statistics
        for _, value in item.arguments
        for labels in value.labels
        if labels is not None and removed[labels].any()
    }
