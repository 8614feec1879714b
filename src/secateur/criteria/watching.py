"""Watching: a criterion looks on while the network is trained or evaluated as usual."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, Observer, Reduction, Subject, resolve
from secateur.criteria.layout import lay_out, modules_of
from secateur.criteria.scores import Scores
from secateur.errors import UsageError
from secateur.ranks import Ranks

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph


class Watch:
    """A criterion that looks on; made by :func:`watch`, used in a ``with`` statement.

    Hooks are there only inside of the ``with`` statement, and are removed however it is left.
    """

    def __init__(self, criterion: Criterion, subject: Subject) -> None:
        """Looks at nothing yet.

        Args:
            criterion: what values the channels.
            subject: the network and its layout.
        """
        self.criterion = criterion
        self.model = subject.model
        self._layout = subject.layout
        self._ranks = subject.ranks
        self.observer: Observer = criterion.observe(subject)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Watch:
        if self._handles:
            raise UsageError("this watch is on already; make another one with secateur.criteria.watch")
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
        """Tells the targets of the next forward pass; only ``mutual-information`` asks for them.

        Args:
            targets: one per example, shape ``(B,)``.
        """
        self.observer.targets(targets)

    def expects(self, examples: int) -> None:
        """Tells that the next batch has so many examples over all processes, of which some may come here.

        Only where processes get parts of one batch, and of unequal sizes, need this be told.

        Args:
            examples: of the whole batch.
        """
        self.observer.expects(examples)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Looks away for a block: what happens there does not count."""
        for handle in self._handles:
            handle.remove()
        try:
            yield
        finally:
            self._handles = self.observer.attach()

    def scores(self) -> Scores:
        """The scores from everything seen so far; watching may go on.

        In a watch across ranks every process has to call this, and all get the same scores.

        Returns:
            Raw scores of the prunable groups; those that could not be valued are in
            ``scores.unscored`` with the reason.

        Raises:
            UsageError: if nothing was seen, no group could be valued, or a score is not finite.
        """
        flat, unscored = self.observer.values(self._ranks)
        values = self._layout.split(flat.float().cpu())
        scored = {name: part for name, part in values.items() if name not in unscored}
        if unscored and not scored:
            name, reason = next(iter(unscored.items()))
            raise UsageError(f"{self.criterion.name} can value no group of this network ({name!r}: {reason})")
        return Scores(self.criterion.name, scored, unscored)


def watch(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str | Criterion = "taylor",
    *,
    reduction: Reduction = "mean",
    across_ranks: bool = False,
) -> Watch:
    """Scores channels during training steps that happen anyway.

    Any loop will do: call the network, ``loss.backward()``, let the optimizer step. Every
    forward pass counts as a step of its own when its backward pass has run, also if gradients are
    accumulated over several; forward passes without a backward pass count only for criteria that
    need no gradients. Parameter gradients stay the same to the bit. The network may be in a
    distributed or precision wrapper, and activations may be recomputed (checkpointing).
    A compiled network has to be watched before it is compiled. Whatever scales the loss (a float16
    gradient scaler, a division by accumulation steps) scales the scores.

    Args:
        model: the network that was traced, or a wrapper with the network in its ``module``.
        graph: its channel graph.
        criterion: a registered name, or a criterion with settings of one's own.
        reduction: ``"mean"`` if the loss is a mean over the batch (gradients are multiplied by the
            batch size, so that scores do not depend on it), ``"sum"`` if it is a sum.
        across_ranks: whether the processes of a distributed run each work on a part of every batch; then
            all of them have to watch, step by step, and the scores are those of the whole batches.

    Returns:
        A context manager with :meth:`Watch.scores`.

    Raises:
        UsageError: if the criterion is unknown, cannot watch, or the graph is of another network.

    >>> import torch
    >>> from secateur.graph import trace
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with watch(model, trace(model, torch.ones(1, 3)), "taylor") as watching:
    ...     for inputs in torch.ones(5, 8, 3):
    ...         optimizer.zero_grad()
    ...         model(inputs).square().mean().backward()
    ...         optimizer.step()
    >>> watching.scores()["0"].shape
    torch.Size([4])
    """
    chosen = resolve(criterion)
    if chosen.needs is Needs.OWN_PASSES:
        raise UsageError(f"{chosen.name} needs passes of its own and cannot watch; use secateur.score")
    return start(model, graph, chosen, reduction, Ranks(across_ranks))


def start(
    model: nn.Module, graph: ChannelGraph, criterion: Criterion, reduction: Reduction, ranks: Ranks
) -> Watch:
    """A watch for a criterion of any kind, not yet on."""
    if reduction not in get_args(Reduction):
        raise UsageError(f"reduction is 'mean' or 'sum', not {reduction!r}")
    inner, modules = modules_of(model, graph)
    layout = lay_out(graph, modules)
    if not layout.groups:
        raise UsageError("no channel group of this network may be pruned; print the graph to see the reasons")
    return Watch(criterion, Subject(inner, modules, layout, reduction, ranks))
