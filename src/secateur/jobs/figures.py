"""Collect the figures by which networks are compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from secateur.graph.capture.program import ExampleInputs
from secateur.latency import compare_latency
from secateur.network_cost import cost
from secateur.training.evaluate import Evaluation
from secateur.training.metrics import TOP_1

Figures = dict[str, Any]


class Clock:
    """Measure the seconds that each part of a job takes.

    >>> clock = Clock()
    >>> with clock("sleeping"):
    ...     time.sleep(0.01)
    >>> 0.01 <= clock.seconds["sleeping"] < 5
    True
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time a block.

        Args:
            part: of the job; the times of several blocks of one part are added.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[part] = round(self.seconds.get(part, 0.0) + spent, 3)

    def total(self) -> dict[str, float]:
        """Return the seconds of all parts, and under ``total`` the seconds since the clock was created."""
        return {**self.seconds, "total": round(time.perf_counter() - self._began, 3)}


def figures(
    model: nn.Module, inputs: ExampleInputs, file: Path | None = None, evaluation: Evaluation | None = None
) -> Figures:
    """Collect the costs and the metric of a network; milliseconds come from :func:`latencies`.

    Args:
        model: the network.
        inputs: an example batch.
        file: its checkpoint.
        evaluation: its evaluation, if it was evaluated.

    Returns:
        The metric by its key (``top1``, in [0, 1], or ``perplexity``), ``params``, ``macs`` of one example,
        ``file_bytes``, ``latency_ms``; unknown figures are ``None``.
    """
    needs = cost(model, inputs)
    return {
        **(evaluation.figures if evaluation else {TOP_1.key: None}),
        "params": needs.params,
        "macs": needs.macs,
        "file_bytes": file.stat().st_size if file else None,
        "latency_ms": None,
    }


def latencies(
    models: Mapping[str, nn.Module], inputs: ExampleInputs, seconds: float = 1.0
) -> tuple[dict[str, float], Figures]:
    """Measure the times of networks whose passes alternate.

    Args:
        models: by name.
        inputs: an example batch that all of them take.
        seconds: measuring time for each.

    Returns:
        Median milliseconds by name, and the conditions: quartiles, runs, threads, device, batch.
    """
    comparison = compare_latency(models, inputs, min_seconds=seconds)
    return {name: item.median_ms for name, item in comparison.latencies.items()}, comparison.conditions()
