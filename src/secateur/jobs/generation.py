"""Measure how fast language models read and write tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.errors import UsageError
from secateur.jobs.candidates import Candidate
from secateur.jobs.evaluate import evaluate
from secateur.jobs.settings import Conditions, DataChoice, NetworkChoice
from secateur.jobs.text import reading
from secateur.latency import compare_generation
from secateur.network_cost import cost
from secateur.recipes import Callback
from secateur.training.events import report_progress
from secateur.training.settings import DeviceSettings


def measure_language(
    choices: Sequence[NetworkChoice],
    candidates: Sequence[Candidate],
    data: DataChoice | None,
    conditions: Conditions,
    device: DeviceSettings | None,
    callbacks: Sequence[Callback],
) -> dict[str, Any]:
    """Measure parameters, MACs, file size, perplexity and tokens a second of language models.

    Args:
        choices: the networks; the others are compared with the first.
        candidates: the opened networks, on their device.
        data: a text to evaluate them on, if any.
        conditions: length of the prompt, threads and seconds.
        device: where perplexity is computed.
        callbacks: receive progress and notes.

    Returns:
        ``networks``, a list of figures with their ``name``: among others ``macs`` of a pass over the prompt,
        and ``prefill`` and ``decode``, tokens a second that are read and written; ``latency``, the
        conditions.

    Raises:
        UsageError: a candidate is no language model, or a condition is only for other networks.
    """
    _refuse_others(candidates, conditions)
    threads, *others = conditions.threads or (None,)
    if others:
        raise UsageError("--threads: give one number for language models")
    networks = {
        f"{number}": reading(candidate.network, conditions.prompt, "--prompt")
        for number, candidate in enumerate(candidates)
        if candidate.network is not None
    }
    report_progress(callbacks, "measuring", 0, 1)
    ids = next(iter(networks.values())).example(1)["input_ids"]
    models = {name: network.model for name, network in networks.items()}
    found = compare_generation(models, ids, min_seconds=conditions.seconds, threads=threads)
    report_progress(callbacks, "measuring", 1, 1)
    rows = []
    for choice, candidate, (name, network) in zip(choices, candidates, networks.items(), strict=True):
        needs = cost(network.model, network.example())
        judged = {} if data is None else evaluate(choice, data, device, callbacks)
        rows.append(
            {
                "name": choice.source,
                "model": network.name,
                "perplexity": judged.get("perplexity"),
                "params": needs.params,
                "macs": needs.macs,
                "file_bytes": candidate.file_bytes,
                "prefill": found.prefill_rate(name),
                "decode": found.decode_rate(name),
            }
        )
    first = found.decode.latencies["0"]
    where = {"device": first.device, "threads": first.threads, "batch": found.batch, "runs": first.runs}
    return {"networks": rows, "latency": {**where, "prompt": found.prompt}, "timings": []}


def _refuse_others(candidates: Sequence[Candidate], conditions: Conditions) -> None:
    """Refuse what is not measured for language models.

    Raises:
        UsageError: there is such a network or condition.
    """
    for candidate in candidates:
        if not candidate.reads_tokens:
            raise UsageError(f"{candidate.source} is no language model; measure such networks alone")
    if conditions.runtimes != ("eager",):
        raise UsageError(f"--runtime {conditions.runtimes[0]}: language models are measured eagerly")
    if conditions.batches != (1,):
        raise UsageError("--batch: language models are measured at batch 1")
    if conditions.memory:
        raise UsageError("--memory: not measured for language models; leave it out")
