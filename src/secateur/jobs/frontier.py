"""Compute the trade-off between cost and accuracy: the job behind ``secateur frontier``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.detection import HeadOutputs
from secateur.errors import UsageError
from secateur.inputs import InputSpec
from secateur.jobs.networks import Network, run_file
from secateur.jobs.recipe_job import RecipeJob
from secateur.jobs.settings import FrontierJob
from secateur.jobs.smaller_models import smaller_models
from secateur.jobs.task import check_task, computing, idle_paths, open_task
from secateur.jobs.workplace import open_workplace
from secateur.recipes import Callback
from secateur.training.context import launch
from secateur.training.run_folder import read_summary


def frontier(job: FrontierJob, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Measure a network once, and cut, verify, reconstruct and evaluate it at several budgets.

    Nothing is trained. The metric is that on the validation data; on the test data, if there is no other.

    Args:
        job: its settings.
        callbacks: receive progress and notes.

    Returns:
        The content of ``summary.json``; ``frontier`` holds the points. ``measured.json`` holds the scores and
        width curves, which serve other budgets.

    Raises:
        SecateurError: the message says what is wrong; only the run folder was changed.
    """
    run_file(job.network)
    with launch(computing(job)) as context:
        task = open_task(job.data, job.network, job.seed, detector=job.detector)
        check_task(task, job, context.device)
        with open_workplace("frontier", job, context, callbacks, idle_paths(task)) as place:
            network = task.open(job.network)
            network.model.to(context.device)
            with place.clock("reading"):
                task = task.read(place.run.path, place.context)
            place.begin(network, task)
            with place.clock("points"):
                found = RecipeJob(job, place, network, task).frontier(job.by, job.points)
            with place.clock("smaller models"):
                smaller = _smaller_models(network, found.cost.params)
            place.run.summarise(
                model=network.name,
                frontier={**found.to_dict(), "smaller_models": smaller},
                evaluated_on=task.evaluated_on,
                **task.facts(),
            )
        return dict(place.run.summary)


def _smaller_models(network: Network, params: int) -> list[dict[str, Any]]:
    """List the smaller networks of the same family, if the network is one that is built by name."""
    if network.spec is None or isinstance(network.model, HeadOutputs):
        return []
    if not isinstance(network.inputs, InputSpec):
        return []
    return smaller_models(network.spec, network.inputs, params)


def budget_of(run: Path, point: int) -> tuple[str, float]:
    """Return the limited quantity and the share of a point of a frontier.

    Args:
        run: the folder of the frontier.
        point: its number.

    Raises:
        UsageError: the run is no frontier, or has no such point.
    """
    found = read_summary(run).get("frontier")
    if found is None:
        raise UsageError(f"{run} is not the run of a frontier; run secateur frontier first")
    points = {int(entry["number"]): float(entry["share"]) for entry in found["points"]}
    if point not in points:
        raise UsageError(f"{run} has the points 1 to {len(points)}, not {point}")
    return str(found["by"]), points[point]
