"""Width curves, measured: cut one group alone, repair its consumers, see how far the outputs move.

Scores say which channels of a group go first; they are a poor guide to how much each group can
spare. So that is measured. Second moments of what every consumer reads are gathered once, from which
the repair of any cut of one group follows without reading data again; then each cut runs from the
first step that feels it, with the values that the whole network has there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.budget import WidthCurve, WidthCurves
from secateur.criteria.scores import Scores
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, Group
from secateur.graph.cutting import named_tensors
from secateur.graph.masked import Removed
from secateur.recovery.restricted import Restricted, gather_moments
from secateur.recovery.run import Run
from secateur.recovery.script import Script, write_script

Divergence = Literal["kl", "mse"]

SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""The ladder: shares of a group's channels at which the damage is measured, besides all of them."""

Progress = Callable[[WidthCurves, int], None]
"""Told after each group: the curves so far, and how many there will be."""


@dataclass(frozen=True)
class _Keep:
    """A plan in its barest form."""

    keep: Mapping[str, Sequence[int]]


def width_curves(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    shares: Sequence[float] = SHARES,
    held_back: float = 0.5,
    divergence: Divergence | None = None,
    ridge: float = 1e-3,
    max_examples: int | None = None,
    resume: WidthCurves | None = None,
    progress: Progress | None = None,
) -> WidthCurves:
    """Measures what each width of each group costs.

    For each group and each width: the group alone is cut, in the order of its scores; its
    consumers are refitted by least squares; the damage is how far the outputs for
    held-back examples diverge from those of the whole network. The network is left as it is.

    Args:
        model: the network that was traced.
        graph: its channel graph.
        scores: for each group one number per channel; the smallest go first. Groups without scores
            are not measured.
        batches: inputs, or pairs of inputs and targets (which are not used); a few hundred
            examples are enough.
        shares: shares of a group's channels at which to measure.
        held_back: share of the examples on which the damage is measured; the others repair.
        divergence: ``"kl"``, the Kullback-Leibler divergence of the soft-max outputs, or ``"mse"``, the
            mean squared difference as a share of the outputs' variance. By default ``"kl"`` for
            outputs of shape ``(examples, two or more)``.
        ridge: strength of the pull toward the old weights, relative to the mean patch energy.
        max_examples: how many examples to use; all by default.
        resume: curves measured before: those with the same order and widths are not measured again.
        progress: called after each group.

    Returns:
        The curves; :func:`secateur.make_plan` takes them in place of scores.

    Raises:
        UsageError: there are too few examples, or scores that do not fit the graph.

    Example:
        >>> from secateur.criteria import score
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(32, 4)
        >>> graph = trace(net, x)
        >>> curves = width_curves(net, graph, score(net, graph, "magnitude"), [x], shares=[0.5, 0.25])
        >>> curves["0"].widths, curves["0"].damages[-1], curves["0"].damages[0] > 0
        ((2, 4, 8), 0.0, True)
    """
    if divergence is not None and divergence not in get_args(Divergence):
        raise UsageError(f"divergence is 'kl' or 'mse', not {divergence!r}")
    if not 0 < held_back < 1:
        raise UsageError(f"held_back is a share between 0 and 1, not {held_back!r}")
    repairing, measuring = _halves(model, graph, batches, held_back, max_examples)
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    restricted = gather_moments(repairing, graph, tensors, ridge)
    whole = Run(measuring, graph.removed, tensors)
    expected = Run(measuring, graph.removed, tensors).outputs()
    kind: Divergence = divergence or ("kl" if expected.dim() == 2 and expected.shape[1] > 1 else "mse")
    known = resume if resume is not None and resume.divergence == kind else WidthCurves({}, kind)
    measured: dict[str, WidthCurve] = {}
    unmeasured = dict(scores.unscored) if isinstance(scores, Scores) else {}
    todo = [group for group in graph.prunable if group.name in scores]
    for group in sorted(todo, key=lambda group: _first_step(measuring, graph, group)):
        order, widths = _order(scores[group.name], group), _ladder(group.channels, shares)
        old = known.get(group.name)
        if old is not None and old.order == order and old.widths == widths:
            measured[group.name] = old
        else:
            whole.advance(_first_step(measuring, graph, group))
            damages = [
                _damage(whole, graph, group, order[len(order) - width :], restricted, expected, kind)
                for width in widths[:-1]
            ]
            measured[group.name] = WidthCurve(order, widths, (*damages, 0.0))
        if progress is not None:
            progress(WidthCurves(measured, kind, unmeasured), len(todo))
    in_order = {group.name: measured[group.name] for group in todo}
    return WidthCurves(in_order, kind, unmeasured)


def diverge(found: Tensor, expected: Tensor, kind: Divergence) -> float:
    """How far outputs have moved, averaged over examples.

    Args:
        found: outputs, shape ``(N, K)`` for ``"kl"``, any for ``"mse"``.
        expected: outputs of the whole network, of the same shape.
        kind: Σ p log(p / q) with p the soft-max of ``expected`` and q that of ``found``; or the mean
            squared difference over the variance of ``expected``.

    Example:
        >>> diverge(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]), "kl")
        0.0
        >>> diverge(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]), "mse")
        1.0
    """
    if kind == "mse":
        variance = float(expected.float().var(correction=0)) or 1.0
        return float((found - expected).float().square().mean()) / variance
    p, q = F.log_softmax(expected.float(), 1), F.log_softmax(found.float(), 1)
    return max(0.0, float((p.exp() * (p - q)).sum(1).mean()))


def _halves(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Any], held_back: float, most: int | None
) -> tuple[Script, Script]:
    """Scripts for the examples that repair and for those that are held back."""
    script = write_script(model, graph, batches, most)
    parts = script.split(1 - held_back)
    if min(part.examples for part in parts) < 1:
        raise UsageError("width curves need at least two examples: one to repair with, one to measure on")
    return parts


def _order(scores: Any, group: Group) -> tuple[int, ...]:
    """The channels of a group, the lowest score first, equals in the order of the network."""
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (group.channels,) or not np.isfinite(values).all():
        raise UsageError(
            f"group '{group.name}' needs {group.channels} finite scores, one per channel, "
            f"not an array of shape {values.shape}"
        )
    return tuple(int(channel) for channel in np.argsort(values, kind="stable"))


def _ladder(channels: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Ascending widths for the shares, and all channels.

    >>> _ladder(16, (0.5, 0.01, 0.5))
    (1, 8, 16)
    """
    return tuple(sorted({min(channels, max(1, round(channels * share))) for share in shares} | {channels}))


def _cut(graph: ChannelGraph, group: Group, kept: Sequence[int]) -> Removed:
    return graph.after(_Keep({group.name: sorted(kept)})).removed


def _first_step(script: Script, graph: ChannelGraph, group: Group) -> int:
    """The first step that feels a cut of the group."""
    removed = _cut(graph, group, ())
    wiring = script.wiring
    felt = {read.node for read in wiring.reads if removed[read.labels].any()}
    for item in wiring.statistics:
        vectors = [labels for _, value in item.arguments for labels in value.labels if labels is not None]
        if any(removed[labels].any() for labels in vectors):
            felt.add(item.node)
    return next((step for step, node in enumerate(script.nodes) if node.name in felt), len(script.nodes) - 1)


def _damage(
    whole: Run,
    graph: ChannelGraph,
    group: Group,
    kept: Sequence[int],
    restricted: Sequence[Restricted],
    expected: Tensor,
    kind: Divergence,
) -> float:
    removed = _cut(graph, group, kept)
    tensors = dict(whole.tensors)
    for consumer in restricted:
        tensors.update(consumer.repaired(removed, whole.tensors))
    return diverge(whole.fork(removed, tensors).outputs(), expected, kind)
