"""Show progress: bars on a terminal, one line for each long phase elsewhere."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from secateur.cli.quiet import silent_output
from secateur.formats import duration, percent
from secateur.recipes import Callback, Cut, Tried
from secateur.training.events import EpochDone
from secateur.training.events import Progress as ProgressEvent

_WIDE = 120
"""Columns of the output if there is no terminal."""

_LONG = 5.0
"""Seconds after which a phase prints its line if there are no bars: then the time left is known."""


class Reporter(Callback):
    """Show the library's reports; use it as a context manager around the work.

    Args:
        as_json: write only the JSON object to standard output, and everything else to standard error.
        quiet: show nothing, because another process shows it.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self._quiet = as_json, quiet
        self.console = Console(stderr=as_json, highlight=False, quiet=quiet)
        if not self.console.is_terminal:
            self.console.width = _WIDE
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._silence = ExitStack()

    def __enter__(self) -> Self:
        if self.as_json:
            self._silence.enter_context(silent_output())
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        self._silence.close()

    def on_progress(self, progress: ProgressEvent) -> None:
        """Move a bar; without bars, print a line once in a phase that takes long."""
        if self.console.is_terminal:
            self._advance(progress)
        else:
            self._print_once(progress)

    def on_epoch_end(self, epoch: EpochDone) -> None:
        """Show an epoch."""
        self.say(epoch_line(epoch))

    def on_note(self, text: str) -> None:
        """Show a note."""
        self.say(text)

    def on_cut(self, cut: Cut) -> None:
        """Show a cut."""
        self.say(str(cut))

    def on_try(self, tried: Tried) -> None:
        """Show a try of a search."""
        self.say(str(tried))

    def say(self, text: RenderableType) -> None:
        """Show a line, or a table, above the bars.

        Args:
            text: plain text, or anything that rich can draw.
        """
        self.console.print(text, markup=False, soft_wrap=isinstance(text, str))

    def tell(self, text: RenderableType) -> None:
        """Show a line, or a table, that is part of the result for people but not of the JSON object.

        Args:
            text: as for :meth:`say`.
        """
        if not self.as_json:
            self.say(text)

    def finish(self, text: RenderableType, data: Mapping[str, object]) -> None:
        """Show the result: as a table, or as the JSON object.

        Args:
            text: for people.
            data: for programs.
        """
        if self._quiet:
            return
        if self.as_json:
            self._silence.close()
            sys.stdout.write(json.dumps(data, allow_nan=False, default=str) + "\n")
        else:
            self.say(text)

    def _advance(self, event: ProgressEvent) -> None:
        if event.task not in self._tasks:
            self._tasks[event.task] = self._bars.add_task(event.task, total=event.total, loss="")
        task = self._tasks[event.task]
        loss = f"loss {event.loss:.3f}" if event.loss is not None else ""
        self._bars.update(task, completed=event.done, total=event.total, loss=loss)
        if event.done == event.total:
            self._bars.remove_task(self._tasks.pop(event.task))

    def _print_once(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        if event.done == event.total:
            self._first.pop(event.task, None)
            return
        start, done_before = self._first.setdefault(event.task, (now, event.done))
        if now - start < _LONG or event.done == done_before:
            return
        self._first[event.task] = (math.inf, 0)  # no second line
        line = f"{event.task}: {event.done:,} done"
        if event.total is not None:
            left = (now - start) * (event.total - event.done) / (event.done - done_before)
            line = f"{event.task}: {event.done:,} of {event.total:,}, about {duration(left)} left"
        self.say(line)


def epoch_line(event: EpochDone) -> str:
    """Format an epoch as one line; ``kept`` marks each network that was preferred to those before it.

    Args:
        event: the epoch.

    >>> epoch_line(EpochDone("training", 0, 5, None, None, 0.2, top1=0.9, validation_loss=0.3, kept=True))
    'training  before training  top-1 90.00%  validation loss 0.300  0.2 s  kept'
    >>> epoch_line(EpochDone("training", 1, 5, 0.51, 0.01, 3.2, top1=0.89, validation_loss=0.4))
    'training  epoch 1/5  loss 0.510  top-1 89.00%  validation loss 0.400  lr 0.01  3.2 s'
    """
    parts = [event.phase, f"epoch {event.epoch}/{event.epochs}" if event.epoch else "before training"]
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3f}")
    if event.top1 is not None:
        value = percent(event.top1) if event.metric == "top-1" else f"{event.top1:.4g}"
        parts.append(f"{event.metric} {value}")
    if event.validation_loss is not None:
        parts.append(f"validation loss {event.validation_loss:.3f}")
    if event.learning_rate is not None:
        parts.append(f"lr {event.learning_rate:.3g}")
    parts.append(duration(event.seconds))
    if event.kept:
        parts.append("kept")
    return "  ".join(parts)
