"""Time candidates in every runtime, batch size and number of threads, alternately."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from secateur.jobs.candidates import Candidate
from secateur.jobs.settings import Conditions
from secateur.latency import Comparison, InterleavedTimes, Latency, interleaved_timing
from secateur.recipes import Callback
from secateur.training.events import report_progress

Place = tuple[int, str]
"""A candidate by its number, in a runtime."""


def timings(
    candidates: Sequence[Candidate],
    size: Sequence[int],
    conditions: Conditions,
    callbacks: Sequence[Callback],
) -> list[dict[str, Any]]:
    """Time all candidates; under one condition, their passes alternate.

    Args:
        candidates: the others are compared with the first.
        size: shape of one input.
        conditions: runtimes, batch sizes, threads, seconds.
        callbacks: receive progress and notes.

    Returns:
        One row for each candidate, runtime, batch size and number of threads: ``candidate`` (its number),
        ``runtime``, ``batch``, ``threads``, ``device``, ``median_ms``, ``low_ms``, ``high_ms``, ``runs``;
        and, compared with the first candidate in the same runtime (or in its first runtime),
        ``times_as_fast``, ``noise``.
    """
    rows: list[dict[str, Any]] = []
    done, total = 0, len(conditions.threads or (0,)) * len(conditions.batches)
    with tempfile.TemporaryDirectory() as folder:
        for threads in conditions.threads or (None,):
            ready = {
                (number, runtime): candidate.ready(runtime, threads, Path(folder))
                for number, candidate in enumerate(candidates)
                for runtime in candidate.runtimes(conditions.runtimes)
            }
            against = _references(list(ready))
            for batch in conditions.batches:
                report_progress(callbacks, "measuring", done, total)
                inputs = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
                measured = interleaved_timing(
                    {place: partial(runner, inputs.to(runner.device)) for place, runner in ready.items()},
                    against,
                    threads=threads,
                    min_seconds=conditions.seconds,
                )
                found = {
                    place: Latency.of(
                        measured.times[place],
                        threads=threads or torch.get_num_threads(),
                        device=str(runner.device),
                        batch=batch,
                        runtime=runner.runtime,
                    )
                    for place, runner in ready.items()
                }
                rows.extend(_row(place, against[place], found, measured) for place in found)
                done += 1
    report_progress(callbacks, "measuring", total, total)
    return rows


def _references(places: Sequence[Place]) -> dict[Place, Place]:
    """Choose what each is compared with: the first candidate in the same runtime, or in its first runtime."""
    return {
        (number, runtime): (0, runtime) if (0, runtime) in places else places[0] for number, runtime in places
    }


def _row(
    place: Place, yardstick: Place, found: Mapping[Place, Latency], measured: InterleavedTimes[Place]
) -> dict[str, Any]:
    number, runtime = place
    pair = Comparison({"first": found[yardstick], "this": found[place]})
    latency = found[place]
    return {
        "candidate": number,
        "runtime": runtime,
        "batch": latency.batch,
        "threads": latency.threads,
        "device": latency.device,
        "median_ms": latency.median_ms,
        "low_ms": latency.low_ms,
        "high_ms": latency.high_ms,
        "runs": latency.runs,
        "times_as_fast": measured.ratio(place, to=yardstick),
        "noise": place != yardstick and pair.is_noise("this"),
    }
