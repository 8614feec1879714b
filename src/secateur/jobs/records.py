"""A run folder that fills itself while a job works."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

import secateur
from secateur.errors import SecateurError
from secateur.jobs.settings import Job
from secateur.recipes import Cut, Tried
from secateur.training.events import EpochDone, Event, Listener, Note
from secateur.training.run import Run


@contextmanager
def recorded(command: str, job: Job) -> Iterator[Run]:
    """A run folder for the length of a job.

    Args:
        command: name of the job.
        job: everything that it was told.

    Yields:
        The run, with its settings written down.

    Raises:
        RunError: the folder cannot be used.
        SecateurError: what stopped the job; the message ends with where the last good state lies.
    """
    with Run(job.out, overwrite=job.overwrite) as run:
        settings = job.model_dump(mode="json", exclude_none=True)
        run.configure({"command": command, "version": secateur.__version__, **settings})
        run.summarise(command=command, environment=environment())
        try:
            yield run
        except SecateurError as error:
            last = run.checkpoint("last")
            if last.is_file():
                error.args = (f"{error}; the last good state is {last}",)
            raise


def environment() -> dict[str, Any]:
    """What a run depends on besides its settings."""
    return {
        "secateur": secateur.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def recording(run: Run, listener: Listener) -> Listener:
    """A listener that writes epochs and cuts to ``metrics.jsonl`` and hands everything on.

    Args:
        run: where to write.
        listener: hears every event afterwards.
    """

    def hear(event: Event) -> None:
        record = as_record(event)
        if record is not None:
            run.log(record)
        listener(event)

    return hear


def as_record(event: Event) -> Mapping[str, Any] | None:
    """An event as one line of ``metrics.jsonl``; ``None`` for events that are not worth one.

    Args:
        event: what happened.

    >>> as_record(Note("two pictures were left out"))
    {'event': 'note', 'text': 'two pictures were left out'}
    """
    match event:
        case EpochDone():
            return {"event": "epoch", **asdict(event)}
        case Cut():
            return {"event": "cut", **cut_record(event)}
        case Tried():
            return {"event": "try", **asdict(event)}
        case Note():
            return {"event": "note", "text": event.text}
    return None


def cut_record(cut: Cut) -> dict[str, Any]:
    """A cut as plain values: what went, what is left, and the proof.

    Args:
        cut: the cut.
    """
    return {
        "number": cut.number,
        "removed": {name: list(channels) for name, channels in cut.plan.removed.items()},
        "cost": asdict(cut.plan.cost_after),
        "verification": cut.verification.to_dict(),
    }
