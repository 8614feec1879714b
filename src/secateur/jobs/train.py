"""Train a network on images or text: the job behind ``secateur train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.jobs.networks import Network, refuse_ultralytics
from secateur.jobs.pretrained import write_pretrained
from secateur.jobs.records import fit_record
from secateur.jobs.settings import TrainJob
from secateur.jobs.task import open_task
from secateur.jobs.workplace import open_workplace
from secateur.network_cost import cost
from secateur.recipes import Callback
from secateur.settings import refuse_idle
from secateur.training.context import RunContext, launch
from secateur.training.events import report_note
from secateur.training.loop import FitOptions, fit


def train(job: TrainJob, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train a network, keep the best epoch, and evaluate it on the test data.

    Args:
        job: its settings.
        callbacks: receive progress and notes.

    Returns:
        The content of ``summary.json``. The network is in ``checkpoints/best.safetensors``.

    Raises:
        SecateurError: the message says what is wrong; only the run folder was changed.
    """
    with launch(job.device) as context:
        return _train(job, context, callbacks)


def _train(job: TrainJob, context: RunContext, callbacks: Sequence[Callback]) -> dict[str, Any]:
    refuse_ultralytics(job.network, "train(data=...)")
    task = open_task(job.data, job.network, job.seed)
    refuse_idle(task.needs(), job.given)
    with open_workplace("train", job, context, callbacks) as place:
        network = task.open(job.network)
        report_note(place.callbacks, origin(network))
        network.model.to(place.context.device)
        cost(network.model, network.example())  # found now, not after hours: what cannot be captured
        with place.clock("reading"):
            task = task.read(place.run.path, place.context)
        place.begin(network, task)
        with place.clock("training"):
            training = task.training(place.context)
            assert training.batches is not None
            state = fit(
                network.model,
                training.batches,
                job.fit,
                FitOptions(
                    validation=training.validation,
                    loss_fn=task.loss_fn,
                    context=replace(place.context, save=lambda name, found: place.save(name, network, found)),
                ),
            )
        evaluation = place.evaluate(network.model, task)
        network = replace(network, file=place.finish(network))
        folders = write_pretrained(place, network, task)
        figures, conditions = place.compare({"network": network}, {"network": evaluation})
        place.run.summarise(
            model=network.name,
            **figures,
            checkpoint=network.file,
            training=fit_record(state),
            **{f"validation_{kept.kind.key}": kept.metric for kept in [state.kept] if kept},
            **task.facts(),
            latency=conditions,
            **folders,
        )
    return dict(place.run.summary)


def origin(network: Network) -> str:
    """Format in one line where a network's weights come from, and which tensors have none.

    Args:
        network: just opened.
    """
    if network.file is not None:
        return f"weights from {network.file}"
    if network.weights is None:
        return f"{network.name} without weights: training starts from scratch"
    return f"weights of {network.name}: {network.weights}"
