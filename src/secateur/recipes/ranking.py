"""What a plan goes by: scores of channels, or measured curves of widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from secateur.budget import WidthCurves
from secateur.curves import width_curves
from secateur.graph import ChannelGraph
from secateur.training.events import Listener, Progress, silent
from secateur.training.interrupt import Interruption

CURVE_BATCHES = 8
"""Batches on which widths are measured where nobody says how many: a few hundred examples are enough."""


def measured_curves(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    batches: Iterable[Any],
    listener: Listener = silent,
    interruption: Interruption | None = None,
    *,
    resume: WidthCurves | None = None,
    tell: Callable[[WidthCurves], object] | None = None,
    across_ranks: bool = False,
) -> WidthCurves:
    """Width curves of a network, with progress told.

    Args:
        model: the network that was traced.
        graph: its channel graph.
        scores: in whose order the channels of each group go.
        batches: a few hundred examples.
        listener: hears ``Progress``.
        interruption: asked after each group.
        resume: curves that were measured before on the same network.
        tell: told the curves so far after each group that was measured.
        across_ranks: whether the processes of a distributed run share the work.

    Returns:
        The curves of all groups that can be measured.

    Raises:
        StoppedError: the user asked to stop.
    """
    known = 0 if resume is None else len(resume)

    def hear(curves: WidthCurves, total: int) -> None:
        listener(Progress("measuring widths", len(curves), total))
        if tell is not None and len(curves) > known:
            tell(curves)
        if interruption is not None:
            interruption.check()

    return width_curves(
        model, graph, scores, batches, resume=resume, progress=hear, across_ranks=across_ranks
    )
