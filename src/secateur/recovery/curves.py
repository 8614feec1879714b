"""Measure width curves: cut one group alone, refit its consumers, and measure the change of the outputs.

A residual branch has one point: it is absent, and the next layers that read the stream are refitted.

Scores give the order in which channels of a group are removed; they say little about how many channels each
group can lose. So that is measured. The second moments of what a group's consumers read are gathered when a
pass through the network reaches them, and kept until the last group that needs them is measured; the
least-squares fit for any cut of one group follows from them without reading data again. Then each cut runs
from the first step that reads a cut channel, with the values of the whole network at that step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.budget import WidthCurve, WidthCurves
from secateur.criteria.scores import Scores
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, Group
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.labels import BoolArray
from secateur.plan import PruningPlan
from secateur.precision import full_precision
from secateur.recovery.captured_forward import CapturedForward, capture_forward, removed_without
from secateur.recovery.consumers import Consumer
from secateur.recovery.masked_units import MaskedUnits
from secateur.recovery.partial_forward import PartialForward, removed_when_kept
from secateur.recovery.reconstruction import LeastSquares, next_consumers, refit
from secateur.responses import Moments, blocks, fit_restricted, fit_rows_restricted, positions, rows_to_take
from secateur.untouched import untouched

Divergence = Literal["kl", "mse"]

ENOUGH = 128
"""Examples on which damage is measured, if there are twice as many; more hardly improve the widths."""

ENOUGH_TOKENS = 1024
"""Tokens on which damage is measured where the network scores each token of an example."""

_LEAST_EXAMPLES = 2
_AT_ONCE = 1 << 22  # scores that are converted to float64 at once

CurveProgress = Callable[[WidthCurves, int], None]
"""Called after each group with the curves so far and their final number."""


@dataclass(frozen=True)
class CurveOptions:
    """Choose where and how the damage of a width is measured.

    Attributes:
        shares: shares of a group's channels at which the damage is measured, besides all of them. Seven
            shares, on more examples, take twice as long and hardly find better widths (``BENCHMARKS.md``).
        held_back: share of the examples on which the damage is measured; consumers are fitted on the others.
            By default damage is measured on 128 examples, or on half of them where there are fewer than twice
            as many: the precision of a mean depends on their number. Where each token is scored, as many
            examples as contain 1024 tokens are enough.
        divergence: ``"kl"``, the Kullback-Leibler divergence of the soft-max over the last dimension of the
            first output, or ``"mse"``, the mean squared difference as a share of the variance, averaged over
            all outputs. By default ``"kl"`` if the first output has the shape ``(examples, two or more)``, or
            gives each token of an example a score for every entry of the vocabulary.
        fit: how consumers are fitted, and how many examples are used in total.
        branches: whether the damage of removing each residual branch is measured too.

    Raises:
        UsageError: a value is out of range.

    Example:
        >>> CurveOptions(shares=(0.5, 0.25), fit=LeastSquares(max_examples=256)).held_back is None
        True
    """

    shares: Sequence[float] = (0.75, 0.5, 0.25, 0.125)
    held_back: float | None = None
    divergence: Divergence | None = None
    fit: LeastSquares = field(default_factory=LeastSquares)
    branches: bool = False

    def __post_init__(self) -> None:
        if self.divergence is not None and self.divergence not in get_args(Divergence):
            raise UsageError(f"divergence is 'kl' or 'mse', not {self.divergence!r}")
        if self.held_back is not None and not 0 < self.held_back < 1:
            raise UsageError(f"held_back is a share between 0 and 1, not {self.held_back!r}")


@untouched()
@full_precision()
def width_curves(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    batches: Iterable[Any],
    options: CurveOptions = CurveOptions(),
    *,
    resume: WidthCurves | None = None,
    progress: CurveProgress | None = None,
    across_ranks: bool = False,
) -> WidthCurves:
    """Measure the damage of each width of each group, and of removing each residual branch.

    For each group and each width: only this group is cut, in the order of its scores; its
    consumers are refitted by least squares; the damage is the divergence of the outputs for
    held-back examples from those of the whole network. For each branch: only this branch is masked, and the
    next consumers of the stream are refitted one after the other, up to the first whose response is added to
    the stream again, which also corrects the stream's error. The network is not changed.

    Args:
        model: the network that was traced.
        graph: its channel graph.
        scores: for each group one number per channel; the smallest are removed first. Groups without scores
            are not measured.
        batches: inputs, pairs of inputs and targets (which are not used), or mappings of named
            arguments; a few hundred examples are enough.
        options: at which widths to measure, and how.
        resume: curves measured before: those with the same order and widths are not measured again.
        progress: called after each group and each branch.
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
        >>> graph, options = trace(net, x), CurveOptions(shares=[0.5, 0.25])
        >>> curves = width_curves(net, graph, score(net, graph, "magnitude"), [x], options)
        >>> curves["0"].widths, curves["0"].damages[-1], curves["0"].damages[0] > 0
        ((2, 4, 8), 0.0, True)
    """
    fitting, measuring = _captured(model, graph, batches, options)
    original = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    units = MaskedUnits.of(graph, measuring, original, across_ranks)
    tensors = units.tensors
    expected = units.whole().outputs()
    divergence: Divergence = options.divergence or _divergence_of(measuring)
    same = resume is not None and resume.divergence == divergence
    known = resume if resume is not None and same else WidthCurves({}, divergence)
    starts, unread = units.first_steps(group for group in graph.prunable if group.name in scores)
    unmeasured = (dict(scores.unscored) if isinstance(scores, Scores) else {}) | unread
    orders = {name: _order(scores[name], graph[name]) for name in starts}
    widths = {
        name: _widths(graph[name].channels, options.shares, graph[name].min_channels) for name in starts
    }
    old = {
        name: curve
        for name, curve in known.items()
        if name in starts and (curve.order, curve.widths) == (orders[name], widths[name])
    }
    moments = _GatheredMoments(
        PartialForward(fitting, graph.removed, original), graph, set(starts) - set(old), options.fit
    )
    fitted = PartialForward(fitting, graph.removed, original)

    def damage(whole: PartialForward, removed: BoolArray, refitted: Iterable[Mapping[str, Tensor]]) -> float:
        changed = dict(tensors)
        for some in refitted:
            changed.update(some)
        return diverge(whole.fork(removed, changed).outputs(), expected, divergence)

    def curve_of(name: str, whole: PartialForward) -> WidthCurve:
        order, consumers, damages = orders[name], moments.of(name), []
        for width in widths[name][:-1]:
            removed = removed_when_kept(graph, graph[name], order[len(order) - width :])
            damages.append(damage(whole, removed, (item.refitted(removed, tensors) for item in consumers)))
        return WidthCurve(order, widths[name], (*damages, 0.0))

    def damage_without(branch: str, whole: PartialForward) -> float:
        removed = removed_without(graph, branch)
        return damage(whole, removed, [_refitted_after(fitted, removed, options.fit)])

    measured: dict[str, WidthCurve] = {}
    damages: dict[str, float] = {}
    places = units.forward.steps_of_branches(graph) if options.branches else {}

    def report() -> None:
        if progress is not None:
            progress(WidthCurves(measured, divergence, unmeasured, damages), len(starts) + len(places))

    # Groups that are read throughout the network come last: what they need is then gathered already, and
    # what the others need is dropped layer by layer.
    ends = moments.ends()
    spans = {name: (start, ends.get(name, start)) for name, start in starts.items()}
    late = {name for name, span in spans.items() if _contains_another(span, spans.values())}
    whole = units.whole()
    for curves in units.measure(
        whole, starts, curve_of, order=lambda name: (name in late, starts[name]), known=old
    ):
        measured |= curves
        report()
    for found in units.measure(units.whole(), places, damage_without, known=known.branches):
        damages |= found
        report()
    return WidthCurves(
        {name: measured[name] for name in starts},
        divergence,
        unmeasured,
        {branch.name: damages[branch.name] for branch in graph.branches if branch.name in damages},
    )


def _refitted_after(whole: PartialForward, removed: BoolArray, fit: LeastSquares) -> dict[str, Tensor]:
    """Refit the next consumers of the stream after a removed branch, to which the whole network is advanced.

    Returns:
        The new weights, biases and running means by name.
    """
    forward = whole.forward
    start = forward.first_affected_step(removed)
    assert start is not None
    consumers = next_consumers(forward, start)
    names = [name for item in consumers for name in (item.weight, item.bias, item.mean) if name is not None]
    whole.advance(start)
    tensors = {**whole.tensors, **{name: whole.tensors[name].clone() for name in names}}
    original, masked = whole.fork(whole.removed, whole.tensors), whole.fork(removed, tensors)
    with torch.no_grad():
        for consumer in consumers:
            original.advance(consumer.step + 1)
            masked.advance(consumer.step)
            refit(consumer, original, masked, np.arange(len(tensors[consumer.weight])), fit)
    return {name: tensors[name] for name in names}


@untouched()
@full_precision()
def masked_damage(model: nn.Module, graph: ChannelGraph, plan: PruningPlan, batches: Iterable[Any]) -> float:
    """Measure the change of the outputs with the channels of a plan masked; nothing is refitted.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        plan: what is removed.
        batches: as for :func:`width_curves`; the first 128 examples are used, or as many as contain 1024
            tokens where each token is scored.

    Returns:
        The divergence as for :func:`width_curves`.
    """
    forward = capture_forward(model, graph, batches, ENOUGH)
    forward = forward.first(_enough(forward))
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    expected, found = (
        PartialForward(forward, removed, tensors).outputs()
        for removed in (graph.removed, graph.after(plan).removed)
    )
    return diverge(found, expected, _divergence_of(forward))


def _divergence_of(forward: CapturedForward) -> Divergence:
    """Choose the divergence of the outputs of a forward pass."""
    first = forward.first_output
    classes = first is not None and first.dim() == 2 and first.shape[1] > 1
    return "kl" if classes or forward.scored_tokens else "mse"


def _contains_another(span: tuple[int, int], spans: Iterable[tuple[int, int]]) -> bool:
    """Return whether another span of steps lies within one."""
    return any(span != other and span[0] <= other[0] and other[1] <= span[1] for other in spans)


def diverge(found: Sequence[Tensor], expected: Sequence[Tensor], kind: Divergence) -> float:
    """Measure the divergence of outputs, averaged over examples.

    Args:
        found: outputs, the first of shape ``(N, K)`` or ``(N, T, K)`` for ``"kl"``.
        expected: outputs of the whole network, of the same shapes.
        kind: ``"kl"``: Σ p log(p / q) with p the soft-max of the first output expected and q that of the
            first found, over the last dimension. ``"mse"``: the mean squared difference of each output over
            the variance of the expected one, averaged over the outputs, so that boxes and scores of a
            detector count alike.

    Example:
        >>> import torch
        >>> diverge([torch.tensor([[0.0, 0.0]])], [torch.tensor([[1.0, 1.0]])], "kl")
        0.0
        >>> scores, boxes = torch.tensor([0.0, 2.0]), torch.tensor([0.0, 200.0])
        >>> diverge([torch.tensor([1.0, 1.0]), boxes], [scores, boxes], "mse")
        0.5
    """
    if kind == "mse":
        return sum(map(_relative_error, found, expected)) / len(expected)
    rows, others = (outputs[0].flatten(end_dim=-2) for outputs in (expected, found))
    total = 0.0
    for part in torch.arange(len(rows)).split(max(1, _AT_ONCE // rows.shape[1])):
        p, q = (F.log_softmax(item[part[0] : part[-1] + 1].double(), 1) for item in (rows, others))
        total += float((p.exp() * (p - q)).sum())
    return max(0.0, total / len(rows))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """Compute the mean squared difference over the variance of what is expected."""
    variance = float(expected.double().var(correction=0)) or 1.0
    return float((found.double() - expected.double()).square().mean()) / variance


def _captured(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Any], options: CurveOptions
) -> tuple[CapturedForward, CapturedForward]:
    """Capture forward passes: for the examples of the fit, and for those on which damage is measured."""
    forward = capture_forward(model, graph, batches, options.fit.max_examples)
    if forward.examples < _LEAST_EXAMPLES:
        raise UsageError("width curves need at least two examples: one to fit on, one to measure on")
    return forward.split(1 - (options.held_back or min(0.5, _enough(forward) / forward.examples)))


def _enough(forward: CapturedForward) -> int:
    """Count the examples on which damage is measured, if there are twice as many."""
    tokens = forward.scored_tokens
    return -(-ENOUGH_TOKENS // tokens) if tokens else ENOUGH


def _order(scores: Any, group: Group) -> tuple[int, ...]:
    """Order the channels of a group, the lowest score first; ties in the order of the network."""
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (group.channels,) or not np.isfinite(values).all():
        raise UsageError(
            f"group '{group.name}' needs {group.channels} finite scores, one per channel, "
            f"not an array of shape {values.shape}"
        )
    return tuple(int(channel) for channel in np.argsort(values, kind="stable"))


def _widths(channels: int, shares: Sequence[float], least: int = 1) -> tuple[int, ...]:
    """List ascending widths for the shares, none below the least, and all channels.

    >>> _widths(16, (0.5, 0.01, 0.5)), _widths(16, (0.5, 0.01), least=2)
    ((1, 8, 16), (2, 8, 16))
    """
    return tuple(
        sorted({min(channels, max(least, round(channels * share))) for share in shares} | {channels})
    )


@dataclass(frozen=True, eq=False)
class _ConsumerMoments:
    """A consumer, with the moments from which it is refitted for any choice of its channels.

    Attributes:
        consumer: the consumer.
        ridge: strength of the regularisation toward the old weights.
        patches: second moments (centred if a constant is fitted) and mean of the whole network's patches,
            shapes ``(G, U, U)`` and ``(G, 1, U)``; or those patches themselves, shape ``(G, R, U)``, if
            they are fewer than the unknowns.
    """

    consumer: Consumer
    ridge: float
    patches: tuple[Tensor, Tensor] | Tensor = field(repr=False)

    def refitted(self, removed: BoolArray, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fit the consumer's tensors for the channels that are not removed.

        Args:
            removed: per slot, whether it is cut.
            tensors: the whole network's tensors; not changed.

        Returns:
            New weight and bias or running mean, in whole sizes; nothing if it reads no removed channel.
        """
        consumer, window = self.consumer, self.consumer.window
        gone = removed[consumer.labels]
        if not gone.any():
            return {}
        weight = tensors[consumer.weight]
        kept = torch.from_numpy(np.flatnonzero(~gone[: len(gone) // window.groups])).to(weight.device)
        taps = weight[0, 0].numel() if weight.dim() > 2 else 1
        columns = (kept[:, None] * taps + torch.arange(taps, device=kept.device)).ravel()
        flat = weight.reshape(window.groups, weight.shape[0] // window.groups, -1)
        if isinstance(self.patches, Tensor):
            fitted, shift = fit_rows_restricted(
                self.patches, flat, columns, self.ridge, constant=consumer.constant
            )
        else:
            fitted, shift = fit_restricted(
                *self.patches, flat, columns, self.ridge, constant=consumer.constant
            )
        new = flat.clone()
        new[..., columns] = fitted.to(weight.dtype)
        result = {consumer.weight: new.reshape(weight.shape)}
        constant = shift.reshape(-1).to(weight.dtype)
        if consumer.bias is not None:
            result[consumer.bias] = tensors[consumer.bias] + constant
        elif consumer.mean is not None:
            result[consumer.mean] = tensors[consumer.mean] - constant
        return result


class _GatheredMoments:
    """Gather the moments of what consumers read when a pass reaches them, once for all that read one value.

    Args:
        whole: the whole network on the examples of the fit.
        graph: its graph.
        groups: names of the groups to measure.
        fit: how to fit.
    """

    def __init__(
        self, whole: PartialForward, graph: ChannelGraph, groups: Set[str], fit: LeastSquares
    ) -> None:
        self._whole, self._fit = whole, fit
        self._consumers = whole.forward.consumers
        # The groups that each consumer reads and that are not measured yet.
        self._waiting: list[set[str]] = []
        for consumer in self._consumers:
            labels = consumer.labels[consumer.labels >= 0]
            read = np.unique(graph.wiring.group_of[labels])
            self._waiting.append({graph.groups[number].name for number in read if number >= 0} & groups)
        self._patches: dict[tuple[Any, ...], tuple[Tensor, Tensor] | Tensor] = {}
        self._reached = 0

    def ends(self) -> dict[str, int]:
        """Find the step of the last consumer of each group that is not measured yet."""
        pairs = zip(self._consumers, self._waiting, strict=True)
        return {name: consumer.step for consumer, names in pairs for name in names}

    def of(self, group: str) -> list[_ConsumerMoments]:
        """Return the consumers of a group with their moments, which are dropped if no other group needs them.

        Args:
            group: name of a group to measure, once.
        """
        own = [number for number, names in enumerate(self._waiting) if group in names]
        for number in range(self._reached, own[-1] + 1 if own else 0):
            self._gather(number)
            self._reached = number + 1
        found = [
            _ConsumerMoments(consumer, self._fit.ridge, self._patches[_input_of(consumer)])
            for consumer in (self._consumers[number] for number in own)
        ]
        for number in own:
            self._waiting[number].remove(group)
        needed = {
            _input_of(consumer)
            for consumer, names in zip(self._consumers, self._waiting, strict=True)
            if names
        }
        self._patches = {key: patches for key, patches in self._patches.items() if key in needed}
        return found

    def _gather(self, number: int) -> None:
        """Gather the moments of one consumer, if they are needed and not known."""
        consumer = self._consumers[number]
        if self._waiting[number] and _input_of(consumer) not in self._patches:
            self._whole.advance(consumer.step)
            self._patches[_input_of(consumer)] = _patches(consumer, self._whole, self._fit)


def _input_of(consumer: Consumer) -> tuple[Any, ...]:
    """Name what the moments of a consumer's inputs depend on."""
    return consumer.source, consumer.window, consumer.constant


def _patches(consumer: Consumer, whole: PartialForward, fit: LeastSquares) -> tuple[Tensor, Tensor] | Tensor:
    """Compute second moments and mean of a consumer's inputs, or return the patches themselves."""
    forward, window = whole.forward, consumer.window
    unknowns = len(consumer.labels) // window.groups * int(np.prod(window.kernel))
    share, dual = rows_to_take(consumer.rows(forward.examples, forward.size), unknowns, fit.rows_per_unknown)
    generator = torch.Generator().manual_seed(0)
    moments, rows = Moments(), []
    for number, chunk in enumerate(forward.chunks):
        x = forward.trimmed(whole.value(number, consumer.source), chunk)
        chosen = positions(window.positions(tuple(x.shape)), share, generator)
        for block, nothing in blocks(window, x, None, chosen):
            if dual:
                rows.append(block)
            else:
                moments.add(block, nothing)
    if dual:
        return torch.cat(rows, 1)
    # Every cut reads these again, and they are large for wide layers: so they are computed once.
    second, _, _ = moments.second(centred=consumer.constant)
    return second, moments.x_mean
