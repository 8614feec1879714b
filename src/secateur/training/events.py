"""What the library tells whoever listens; it never prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TypeVar

from secateur.training.interrupt import Interruption

Item = TypeVar("Item")


@dataclass(frozen=True)
class Event:
    """Base of everything that can be heard."""


@dataclass(frozen=True)
class Note(Event):
    """Something a user should know, in one line.

    Attributes:
        text: the line.
    """

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Fact(Event):
    """Base of what is for the records, and not worth a line to a person."""


@dataclass(frozen=True)
class Progress(Event):
    """Work that takes a while has come a step further.

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
class EpochDone(Event):
    """One epoch of training is over.

    Attributes:
        phase: which phase of the run, such as ``"after cut 2"``.
        epoch: number within the phase, from 1.
        epochs: of the phase.
        loss: mean over the examples of the epoch, while the weights changed.
        learning_rate: of the last step.
        seconds: time for the epoch, validation included.
        top1: share of validation examples classified rightly, if there are any.
        validation_loss: mean over them.
        best: whether this is the best epoch so far, of a phase that keeps its best.
    """

    phase: str
    epoch: int
    epochs: int
    loss: float
    learning_rate: float
    seconds: float
    top1: float | None = None
    validation_loss: float | None = None
    best: bool = False


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that does nothing."""


def tracked(
    items: Iterable[Item],
    task: str,
    listener: Listener = silent,
    interruption: Interruption | None = None,
    total: int | None = None,
) -> Iterator[Item]:
    """Hands items on, tells the listener after each, and stops between two if interrupted.

    Args:
        items: such as batches.
        task: what the items are worked on for.
        listener: hears ``Progress``.
        interruption: asked after each item has been worked on.
        total: number of items; asked of ``items`` if not given.

    Yields:
        The items.

    Raises:
        StoppedError: after the item during whose work the user asked to stop.

    >>> heard = []
    >>> list(tracked("ab", "reading", heard.append))
    ['a', 'b']
    >>> heard[-1]
    Progress(task='reading', done=2, total=2, loss=None)
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    for number, item in enumerate(items, start=1):
        yield item
        listener(Progress(task, number, total))
        if interruption is not None:
            interruption.check()
