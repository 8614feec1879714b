"""Collect scores while a network is trained or evaluated as usual."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, ObservedNetwork, Observer, Reduction, resolve
from secateur.criteria.layout import layout_of, modules_of
from secateur.criteria.scores import Scores
from secateur.errors import UsageError
from secateur.ranks import Ranks

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph


class ScoreCollector:
    """A context manager that collects scores; made by :func:`watch`.

    The network has hooks only inside of the ``with`` statement; they are removed also on failure.
    """

    def __init__(self, criterion: Criterion, network: ObservedNetwork) -> None:
        """Make an observer; nothing is hooked yet.

        Args:
            criterion: scores the channels.
            network: the network and its layout.
        """
        self.criterion = criterion
        self.model = network.model
        self._layout = network.layout
        self._ranks = network.ranks
        self.observer: Observer = criterion.observe(network)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> ScoreCollector:
        if self._handles:
            raise UsageError(
                "scores are collected already; make another collector with secateur.criteria.watch"
            )
        self._handles = self.observer.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()
        return False

    def targets(self, targets: Any) -> None:
        """Pass the targets of the next forward pass; only ``mutual-information`` needs them.

        Args:
            targets: one per example, shape ``(B,)``.
        """
        self.observer.targets(targets)

    def expects(self, examples: int) -> None:
        """Pass the number of examples of the next batch over all processes.

        Needed only where processes get parts of one batch, of unequal sizes.

        Args:
            examples: of the whole batch.
        """
        self.observer.expects(examples)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Collect nothing within a block."""
        for handle in self._handles:
            handle.remove()
        try:
            yield
        finally:
            self._handles = self.observer.attach()

    def scores(self) -> Scores:
        """Compute the scores from all passes so far; more passes may follow.

        Across ranks every process has to call this, and all get the same scores.

        Returns:
            Raw scores of the prunable groups; those that could not be scored are in
            ``scores.unscored`` with the reason.

        Raises:
            UsageError: there were no passes, no group could be scored, or a score is not finite.
        """
        flat, unscored = self.observer.values(self._ranks)
        layout = self._layout
        values = layout.split(flat[: layout.channels].float().cpu())
        scored = {name: part for name, part in values.items() if name not in unscored}
        found = zip(layout.branches, flat[layout.channels :].tolist(), strict=False)
        branches = {name: value for name, value in found if not math.isnan(value)}
        if unscored and not scored and not branches:
            name, reason = next(iter(unscored.items()))
            raise UsageError(f"{self.criterion.name} can score no group of this network ({name!r}: {reason})")
        return Scores(self.criterion.name, scored, unscored, branches=branches)


def watch(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str | Criterion = "taylor",
    *,
    reduction: Reduction = "mean",
    across_ranks: bool = False,
) -> ScoreCollector:
    """Score channels during ordinary training steps.

    Any training loop works: call the network, ``loss.backward()``, ``optimizer.step()``. Each
    forward pass counts as one step when its backward pass has run, also if gradients are
    accumulated over several; forward passes without a backward pass count only for criteria that
    need no gradients. Parameter gradients stay the same to the bit. The network may be in a
    distributed or precision wrapper, and activations may be recomputed (checkpointing).
    Enter the context manager before the network is compiled. A factor on the loss (of a float16
    gradient scaler, or of accumulation steps) multiplies the scores too.

    Args:
        model: the network that was traced, or a wrapper with the network in its ``module``.
        graph: its channel graph.
        criterion: a registered name, or a criterion object.
        reduction: ``"mean"`` if the loss is a mean over the batch (gradients are multiplied by the
            batch size, so that scores do not depend on it), ``"sum"`` if it is a sum.
        across_ranks: whether the processes of a distributed run each work on a part of every batch; then
            all of them have to do this, step by step, and the scores are those of the whole batches.

    Returns:
        A context manager with :meth:`ScoreCollector.scores`.

    Raises:
        UsageError: the criterion is unknown or needs passes of its own, or the graph is of another network.

    >>> import torch
    >>> from secateur.graph import trace
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with watch(model, trace(model, torch.ones(1, 3)), "taylor") as collector:
    ...     for inputs in torch.ones(5, 8, 3):
    ...         optimizer.zero_grad()
    ...         model(inputs).square().mean().backward()
    ...         optimizer.step()
    >>> collector.scores()["0"].shape
    torch.Size([4])
    """
    chosen = resolve(criterion)
    if chosen.needs is Needs.OWN_PASSES:
        raise UsageError(f"{chosen.name} needs passes that training does not make; use secateur.score")
    return collector_of(model, graph, chosen, reduction, Ranks(across_ranks))


def collector_of(
    model: nn.Module, graph: ChannelGraph, criterion: Criterion, reduction: Reduction, ranks: Ranks
) -> ScoreCollector:
    """Make a collector for a criterion of any kind."""
    if reduction not in get_args(Reduction):
        raise UsageError(f"reduction is 'mean' or 'sum', not {reduction!r}")
    inner, modules = modules_of(model, graph)
    layout = layout_of(graph, modules)
    if not layout.groups and not layout.branches:
        raise UsageError("no channel group of this network may be pruned; print the graph to see the reasons")
    return ScoreCollector(criterion, ObservedNetwork(inner, modules, layout, reduction, ranks))
