"""Compare networks: the job behind ``secateur measure``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from secateur.errors import DataError, UsageError
from secateur.jobs.candidates import AsModule, Candidate, check_scores, open_candidate
from secateur.jobs.evaluate import evaluate
from secateur.jobs.footprint import footprint
from secateur.jobs.generation import measure_language
from secateur.jobs.images import open_images
from secateur.jobs.settings import Conditions, DataChoice, NetworkChoice
from secateur.jobs.timing import timings
from secateur.latency import Comparison, Latency
from secateur.network_cost import cost
from secateur.recipes import Callback
from secateur.training.context import RunContext
from secateur.training.evaluate import evaluate as judge
from secateur.training.events import report_progress
from secateur.training.interrupt import interruptible
from secateur.training.metrics import kinds_in
from secateur.training.settings import DeviceSettings


def measure(
    choices: Sequence[NetworkChoice],
    data: DataChoice | None = None,
    *,
    conditions: Conditions | None = None,
    device: DeviceSettings | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Measure parameters, MACs, file size, memory, accuracy and time of networks that run alternately.

    Args:
        choices: networks and exported files; the others are compared with the first.
        data: images to evaluate them on, if any.
        conditions: under which times are measured.
        device: where to compute; exported files run on the CPU.
        callbacks: receive progress and notes.

    Returns:
        ``networks``, a list of figures with their ``name``; ``latency``, the conditions of their
        ``latency_ms``; and ``timings``, one row for each network, runtime, batch size and number of threads.
        For language models, see :func:`secateur.jobs.generation.measure_language`.

    Raises:
        UsageError: the networks take inputs of different sizes; ``--size`` sets one for all; or some are
            language models and others are not.
        SecateurError: a network, a file or the data cannot be used.
    """
    conditions = conditions or Conditions()
    context = RunContext(device or DeviceSettings())
    candidates = [open_candidate(choice) for choice in choices]
    for candidate in candidates:
        if candidate.network is not None:
            candidate.network.model.to(context.device)
    if any(candidate.reads_tokens for candidate in candidates):
        return measure_language(choices, candidates, data, conditions, device, callbacks)
    sizes = {candidate.size for candidate in candidates}
    if len(sizes) > 1:
        shown = " and ".join("x".join(map(str, size)) for size in sorted(sizes))
        raise UsageError(f"the networks take inputs of {shown}; give one --size for all")
    times = timings(candidates, sizes.pop(), conditions, callbacks)
    rows = []
    for number, (choice, candidate) in enumerate(zip(choices, candidates, strict=True)):
        row = _figures(candidate)
        time = _first(times, number)
        row |= {"latency_ms": time["median_ms"], "latency_noise": time["noise"]}
        if conditions.memory:
            report_progress(callbacks, "memory", number, len(choices))
            runtime = candidate.runtimes(("eager",))[0]
            threads = next(iter(conditions.threads), None)
            row["memory_bytes"] = footprint(choice, runtime, conditions.batches[0], threads)
            report_progress(callbacks, "memory", number + 1, len(choices))
        if data is not None:
            row |= _judged(choice, candidate, data, device, callbacks)
        rows.append(row)
    named = [{"name": choices[row["candidate"]].source, **row} for row in times]
    return {"networks": rows, "latency": _conditions(named), "timings": named}


def _figures(candidate: Candidate) -> dict[str, Any]:
    """Collect the figures of a candidate that are known without running it."""
    params = macs = None
    if candidate.network is not None:
        needs = cost(candidate.network.model, candidate.network.example())
        params, macs = needs.params, needs.macs
    elif candidate.file is not None and candidate.file.metadata is not None:
        params, macs = candidate.file.metadata.params, candidate.file.metadata.macs
    return {
        "name": candidate.source,
        "model": candidate.name,
        "top1": None,
        "params": params,
        "macs": macs,
        "file_bytes": candidate.file_bytes,
        "memory_bytes": None,
        "latency_ms": None,
        "latency_noise": False,
    }


def _first(times: Sequence[dict[str, Any]], number: int) -> dict[str, Any]:
    return next(row for row in times if row["candidate"] == number)


def _conditions(times: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the conditions of the first measurement, which are those of every network's ``latency_ms``."""
    names = [item.name for item in fields(Latency)]
    first = {row["name"]: Latency(**{name: row[name] for name in names}) for row in reversed(times)}
    return Comparison(dict(reversed(first.items()))).conditions()


def _judged(
    choice: NetworkChoice,
    candidate: Candidate,
    data: DataChoice,
    device: DeviceSettings | None,
    callbacks: Sequence[Callback],
) -> dict[str, Any]:
    """Evaluate a candidate: top-1, or of a detector mAP, by the names of summaries."""
    if candidate.file is None:
        summary = evaluate(choice, data, device, callbacks)
        return {kind.key: summary[kind.key] for kind in kinds_in(summary)}
    if data.has_boxes:
        raise UsageError(
            f"{choice.source}: mAP is not measured of exported files; leave --data out, or this file"
        )
    spec = candidate.images
    if spec is None:
        raise DataError(f"{choice.source} does not say how images are prepared for it; leave --data out")
    images = open_images(data, spec, seed=0, training=False)
    open_candidate(choice, images.classes)
    check_scores(candidate.file, choice.source, candidate.size, images.classes)
    settings = DeviceSettings(accelerator="cpu", precision="float32")
    with interruptible() as interruption:
        found = judge(
            AsModule(candidate.file),
            images.test_batches(),
            context=RunContext(settings, callbacks=callbacks, interruption=interruption),
        )
    return {found.kind.key: found.metric}
