"""Train a network on images: the job behind ``secateur train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.jobs.images import open_images, read_all
from secateur.jobs.networks import Network, check_outputs, input_of, open_network
from secateur.jobs.records import fit_record
from secateur.jobs.settings import TrainJob
from secateur.jobs.workplace import at_work
from secateur.network_cost import cost
from secateur.recipes import Callback
from secateur.training.context import RunContext, launch
from secateur.training.events import report_note
from secateur.training.loop import fit


def train(job: TrainJob, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train a network, keep the best epoch, and evaluate it on the test images.

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
    data = open_images(job.data, input_of(job.network), job.seed)
    with at_work("train", job, context, callbacks) as place:
        network = open_network(job.network, data.classes)
        report_note(place.callbacks, origin(network))
        network.model.to(place.context.device)
        check_outputs(network, data.classes)
        cost(network.model, network.example())  # found now, not after hours: what cannot be captured
        with place.clock("reading"):
            read_all(data, place.callbacks)
        place.begin(network, data)
        with place.clock("training"):
            state = fit(
                network.model,
                data.training_batches(),
                job.fit,
                validation=data.validation_batches(),
                context=replace(place.context, save=lambda name, found: place.save(name, network, found)),
            )
        evaluation = place.evaluate(network.model, data.test_batches())
        network = replace(network, file=place.finish(network))
        figures, conditions = place.compare({"network": network}, {"network": evaluation})
        place.run.summarise(
            model=network.name,
            **figures,
            checkpoint=network.file,
            training=fit_record(state),
            validation_top1=state.kept.metric if state.kept else None,
            classes=data.classes,
            skipped=data.skipped,
            latency=conditions,
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
