"""What trainers and other long work report, and the callbacks that receive it; nothing here prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

from secateur.training.interrupt import Interruption
from secateur.training.metrics import TOP_1

Item = TypeVar("Item")


@dataclass(frozen=True)
class Progress:
    """Work that takes a while is one step further.

    Attributes:
        task: what is being done, such as ``"training"``; a new value starts a new bar.
        done: steps finished.
        total: steps in all, ``None`` if not known.
        loss: of the last step, if there is one.
    """

    task: str
    done: int
    total: int | None
    loss: float | None = None


@dataclass(frozen=True)
class EpochDone:
    """Training has been evaluated: before it began, as epoch 0, or after an epoch or several.

    Attributes:
        phase: which phase of the run, such as ``"after cut 2"``.
        epoch: number of epochs of the phase that are over; 0 for the network before training.
        epochs: of the phase.
        loss: mean over the examples since the last report, while the weights changed; none for epoch 0.
        learning_rate: of the last step; none for epoch 0.
        seconds: time since the last report, validation included.
        metric: of the evaluation on validation examples, if there was one.
        metric_name: what the metric is; ``top-1`` is the share of examples that are classified correctly.
        validation_loss: mean over the validation examples.
        kept: whether this network is kept, unless a later one is preferred to it.
    """

    phase: str
    epoch: int
    epochs: int
    loss: float | None
    learning_rate: float | None
    seconds: float
    metric: float | None = None
    metric_name: str = TOP_1.name
    validation_loss: float | None = None
    kept: bool = False


class TrainingCallback:
    """Receive what training and other long work report. The methods do nothing; override what you need."""

    def on_progress(self, progress: Progress) -> None:
        """Called after each step of work that takes a while."""

    def on_note(self, text: str) -> None:
        """Called with something that a user should know, in one line."""

    def on_epoch_end(self, epoch: EpochDone) -> None:
        """Called before training, and after each epoch or several, when the network has been evaluated."""


def report_progress(
    callbacks: Iterable[TrainingCallback], task: str, done: int, total: int | None, loss: float | None = None
) -> None:
    """Report a step of work to all callbacks; arguments as for :class:`Progress`."""
    for callback in callbacks:
        callback.on_progress(Progress(task, done, total, loss))


def report_epoch(callbacks: Iterable[TrainingCallback], epoch: EpochDone) -> None:
    """Report the end of an epoch to all callbacks."""
    for callback in callbacks:
        callback.on_epoch_end(epoch)


def report_note(callbacks: Iterable[TrainingCallback], text: str) -> None:
    """Report a line of text to all callbacks."""
    for callback in callbacks:
        callback.on_note(text)


def tracked(
    items: Iterable[Item],
    task: str,
    callbacks: Sequence[TrainingCallback] = (),
    interruption: Interruption | None = None,
    total: int | None = None,
) -> Iterator[Item]:
    """Pass items on, report progress after each, and stop between two if interrupted.

    Args:
        items: such as batches.
        task: what the items are worked on for.
        callbacks: receive the progress.
        interruption: checked after each item has been worked on.
        total: number of items; that of ``items`` if not given.

    Yields:
        The items.

    Raises:
        StoppedError: after the item during which the user asked to stop.

    >>> class Last(TrainingCallback):
    ...     def on_progress(self, progress):
    ...         self.progress = progress
    >>> last = Last()
    >>> list(tracked("ab", "reading", [last]))
    ['a', 'b']
    >>> last.progress
    Progress(task='reading', done=2, total=2, loss=None)
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    for number, item in enumerate(items, start=1):
        yield item
        report_progress(callbacks, task, number, total)
        if interruption is not None:
            interruption.check()
