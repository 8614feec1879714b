"""A callback that keeps everything that is reported, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from secateur.budget import WidthCurves
from secateur.criteria import Scores
from secateur.recipes import Callback, Cut, LatencyFit, Tried
from secateur.training.events import EpochDone, Progress

Kind = TypeVar("Kind")


class Recorder(Callback):
    """Notes are kept as strings, and the cuts of a resumed run as a tuple."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def received(self, event: Any) -> None:
        """Called with every event; override to do something else with it."""
        self.events.append(event)

    def of(self, kind: type[Kind]) -> list[Kind]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def on_progress(self, progress: Progress) -> None:
        self.received(progress)

    def on_note(self, text: str) -> None:
        self.received(text)

    def on_epoch_end(self, epoch: EpochDone) -> None:
        self.received(epoch)

    def on_scores(self, scores: Scores) -> None:
        self.received(scores)

    def on_curves(self, curves: WidthCurves) -> None:
        self.received(curves)

    def on_cut(self, cut: Cut) -> None:
        self.received(cut)

    def on_latency(self, fit: LatencyFit) -> None:
        self.received(fit)

    def on_resume(self, cuts: Sequence[Cut]) -> None:
        self.received(tuple(cuts))

    def on_try(self, tried: Tried) -> None:
        self.received(tried)
