"""Width curves, measured: cut one group alone, repair its consumers, see how far the outputs move.

Scores say which channels of a group go first; they are a poor guide to how much each group can
spare. So that is measured. Second moments of what every consumer reads are gathered once, from which
the repair of any cut of one group follows without reading data again; then each cut runs from the
first step that feels it, with the values that the whole network has there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from secateur.precision import full_precision
from secateur.ranks import Ranks
from secateur.recovery.layout import laid_out
from secateur.recovery.restricted import Restricted, gather_moments
from secateur.recovery.run import Run
from secateur.recovery.script import Script, write_script
from secateur.recovery.trial import cut_alone, first_step
from secateur.untouched import untouched

Divergence = Literal["kl", "mse"]

SHARES = (0.75, 0.5, 0.25, 0.125)
"""The ladder: shares of a group's channels at which the damage is measured, besides all of them.

Seven rungs, on more examples, take twice as long and find hardly better widths (``BENCHMARKS.md``)."""

ENOUGH = 128
"""Examples to measure on, where there are twice as many: more of them hardly find better widths."""

_LEAST_EXAMPLES = 2
_UNREAD = "nothing in the forward pass reads its channels"

Progress = Callable[[WidthCurves, int], None]
"""Told after each group: the curves so far, and how many there will be."""


@untouched()
@full_precision()
def width_curves(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    shares: Sequence[float] = SHARES,
    held_back: float | None = None,
    divergence: Divergence | None = None,
    ridge: float = 1e-3,
    max_examples: int | None = None,
    resume: WidthCurves | None = None,
    progress: Progress | None = None,
    across_ranks: bool = False,
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
        held_back: share of the examples on which the damage is measured; the others repair. By default
            128 examples measure, or half of them where there are fewer than twice as many: how sure a mean is
            depends on their number.
        divergence: ``"kl"``, the Kullback-Leibler divergence of the soft-max outputs, or ``"mse"``, the
            mean squared difference as a share of the outputs' variance. By default ``"kl"`` for
            outputs of shape ``(examples, two or more)``.
        ridge: strength of the pull toward the old weights, relative to the mean patch energy.
        max_examples: how many examples to use; all by default.
        resume: curves measured before: those with the same order and widths are not measured again.
        progress: called after each group.
        across_ranks: whether the processes of a distributed run share the work: all call this with the
            same arguments, each measures some groups, and all get all curves.

    Returns:
        The curves; :func:`secateur.make_plan` takes them in place of scores.

    Raises:
        UsageError: there are too few examples, or scores that do not fit the graph.

    Example:
        >>> import torch
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
    if held_back is not None and not 0 < held_back < 1:
        raise UsageError(f"held_back is a share between 0 and 1, not {held_back!r}")
    bench = _Bench.of(
        model, graph, _scripts(model, graph, batches, held_back, max_examples), divergence, ridge
    )
    known = resume if resume is not None and resume.divergence == bench.kind else {}
    starts = {group.name: bench.first_step(group) for group in graph.prunable if group.name in scores}
    unmeasured = dict(scores.unscored) if isinstance(scores, Scores) else {}
    unmeasured |= {name: _UNREAD for name, start in starts.items() if start is None}
    todo = {name: start for name, start in starts.items() if start is not None}
    measured: dict[str, WidthCurve] = {}

    def measure(name: str) -> WidthCurve:
        order, widths = _order(scores[name], graph[name]), _ladder(graph[name].channels, shares)
        old = known.get(name)
        if old is None or (old.order, old.widths) != (order, widths):
            return bench.curve(graph[name], order, widths, todo[name])
        return old

    for found in _in_turn(sorted(todo, key=todo.__getitem__), measure, Ranks(across_ranks)):
        measured |= found
        if progress is not None:
            progress(WidthCurves(measured, bench.kind, unmeasured), len(todo))
    return WidthCurves({name: measured[name] for name in todo}, bench.kind, unmeasured)


def diverge(found: Tensor, expected: Tensor, kind: Divergence) -> float:
    """How far outputs have moved, averaged over examples.

    Args:
        found: outputs, shape ``(N, K)`` for ``"kl"``, any for ``"mse"``.
        expected: outputs of the whole network, of the same shape.
        kind: Σ p log(p / q) with p the soft-max of ``expected`` and q that of ``found``; or the mean
            squared difference over the variance of ``expected``.

    Example:
        >>> import torch
        >>> diverge(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]), "kl")
        0.0
        >>> diverge(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]), "mse")
        1.0
    """
    if kind == "mse":
        variance = float(expected.double().var(correction=0)) or 1.0
        return float((found - expected).double().square().mean()) / variance
    p, q = F.log_softmax(expected.double(), 1), F.log_softmax(found.double(), 1)
    return max(0.0, float((p.exp() * (p - q)).sum(1).mean()))


def _in_turn(
    names: Sequence[str], measure: Callable[[str], WidthCurve], ranks: Ranks
) -> Iterator[dict[str, WidthCurve]]:
    """The curves of groups, as many at a time as there are processes, each of which measures one."""
    for at in range(0, len(names), ranks.world_size):
        turn = names[at : at + ranks.world_size]
        mine = [asdict(measure(name)) for name in turn[ranks.rank : ranks.rank + 1]]
        found = (
            WidthCurve(tuple(curve["order"]), tuple(curve["widths"]), tuple(curve["damages"]))
            for curves in ranks.all_gather(mine)
            for curve in curves
        )
        yield dict(zip(turn, found, strict=True))


def _scripts(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Any], held_back: float | None, most: int | None
) -> tuple[Script, Script]:
    """Scripts for the examples that repair and for those that are held back."""
    script = write_script(model, graph, batches, most)
    if script.examples < _LEAST_EXAMPLES:
        raise UsageError("width curves need at least two examples: one to repair with, one to measure on")
    return script.split(1 - (held_back or min(0.5, ENOUGH / script.examples)))


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


@dataclass(frozen=True, eq=False)
class _Bench:
    """The whole network on its way through the held-back examples, and all that cuts need.

    Attributes:
        graph: its channel graph.
        whole: the network; goes forward as groups are measured.
        restricted: its consumers, ready to be refitted.
        expected: its outputs.
        kind: how damage is measured.
    """

    graph: ChannelGraph
    whole: Run
    restricted: Sequence[Restricted]
    expected: Tensor
    kind: Divergence

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        scripts: tuple[Script, Script],
        kind: Divergence | None,
        ridge: float,
    ) -> _Bench:
        """Gathers moments on the first script's examples and outputs on the second's."""
        tensors = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
        restricted = gather_moments(scripts[0], graph, tensors, ridge)
        script, inner = laid_out(scripts[1], graph.removed, tensors)
        expected = Run(script, graph.removed, inner).outputs()
        if kind is None:
            kind = "kl" if expected.dim() == 2 and expected.shape[1] > 1 else "mse"
        return cls(graph, Run(script, graph.removed, inner), restricted, expected, kind)

    def first_step(self, group: Group) -> int | None:
        """The first step that feels a cut of the group; ``None`` if none does."""
        return first_step(self.whole.script, cut_alone(self.graph, group, ()))

    def curve(self, group: Group, order: tuple[int, ...], widths: tuple[int, ...], start: int) -> WidthCurve:
        """Measures a group at a ladder of widths, of which the last is the whole group."""
        self.whole.advance(start)
        damages = [
            self._damage(cut_alone(self.graph, group, order[len(order) - width :])) for width in widths[:-1]
        ]
        return WidthCurve(order, widths, (*damages, 0.0))

    def _damage(self, removed: Removed) -> float:
        tensors = dict(self.whole.tensors)
        for consumer in self.restricted:
            tensors.update(consumer.repaired(removed, self.whole.tensors))
        return diverge(self.whole.fork(removed, tensors).outputs(), self.expected, self.kind)
