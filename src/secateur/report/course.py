"""Read the epochs, cuts and tries of a run from the lines of its log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.verification import Verification


@dataclass(frozen=True)
class Epoch:
    """One evaluation in a training: before it, or after an epoch or several.

    Attributes:
        number: from 1, over the whole run.
        epoch: number of epochs of the phase that are over; 0 for the network before training.
        kept: whether this network was preferred to those before it.
        attempt: number of the network in a search, from 1.
        phase: of the run.
        loss: in training; ``None`` before it.
        metric: of the network on the validation examples, if there are any.
        metric_name: what the metric is, such as ``top-1``.
        macs: multiply-accumulates of the network at that time; ``None`` before the first cut.
        params: parameters, likewise.
        seconds: since the evaluation before.
    """

    number: int
    epoch: int
    kept: bool
    attempt: int
    phase: str
    loss: float | None
    metric: float | None
    metric_name: str
    macs: int | None
    params: int | None
    seconds: float


@dataclass(frozen=True)
class CutMade:
    """One cut, with its verification.

    Attributes:
        number: of the cut.
        attempt: number of the network in a search, from 1.
        after_epoch: number of the epoch before it, 0 if there was none.
        channels: number of removed channels.
        groups: number of groups that lost channels.
        branches: number of removed residual branches.
        macs: multiply-accumulates after the cut.
        params: parameters after the cut.
        verification: how the smaller network compares with the masked original.
    """

    number: int
    attempt: int
    after_epoch: int
    channels: int
    groups: int
    branches: int
    macs: int
    params: int
    verification: Verification


@dataclass(frozen=True)
class Course:
    """The events of a run, in order.

    Attributes:
        epochs: all epochs.
        cuts: all cuts.
        notes: all notes.
    """

    epochs: tuple[Epoch, ...] = ()
    cuts: tuple[CutMade, ...] = ()
    notes: tuple[str, ...] = ()


def course_of(events: Iterable[Mapping[str, Any]]) -> Course:
    """Put the lines of ``metrics.jsonl`` in order.

    Args:
        events: the lines, oldest first; unknown kinds are left out.

    Raises:
        KeyError: a line lacks an entry (or ``TypeError``, ``ValueError``: an entry has another form).

    >>> course_of([{"event": "note", "text": "one"}, {"event": "try"}]).notes
    ('one',)
    """
    epochs: list[Epoch] = []
    cuts: list[CutMade] = []
    notes: list[str] = []
    attempt, last = 1, None
    for event in events:
        match event["event"]:
            case "epoch":
                epochs.append(_epoch(event, len(epochs) + 1, attempt, last))
            case "cut":
                last = _cut(event, attempt, len(epochs))
                cuts.append(last)
            case "try":
                attempt, last = attempt + 1, None
            case "note":
                notes.append(str(event["text"]))
    return Course(tuple(epochs), tuple(cuts), tuple(notes))


def _epoch(event: Mapping[str, Any], number: int, attempt: int, last: CutMade | None) -> Epoch:
    return Epoch(
        number=number,
        epoch=int(event["epoch"]),
        kept=bool(event["kept"]),
        attempt=attempt,
        phase=str(event["phase"]),
        loss=_number(event["loss"]),
        metric=_number(event["metric"]),
        metric_name=str(event["metric_name"]),
        macs=last.macs if last else None,
        params=last.params if last else None,
        seconds=float(event["seconds"]),
    )


def _cut(event: Mapping[str, Any], attempt: int, after_epoch: int) -> CutMade:
    cost, removed = event["cost"], event["removed"]
    return CutMade(
        number=int(event["number"]),
        attempt=attempt,
        after_epoch=after_epoch,
        channels=sum(len(channels) for channels in removed.values()),
        groups=len(removed),
        branches=len(event["without"]),
        macs=int(cost["macs"]),
        params=int(cost["params"]),
        verification=Verification.from_dict(event["verification"]),
    )


def _number(value: Any) -> float | None:
    """Convert a number; ``None`` if it was not finite."""
    return None if value is None else float(value)
