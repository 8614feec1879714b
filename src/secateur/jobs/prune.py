"""Prune a network: the job behind ``secateur prune``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur.budget import Budget
from secateur.criteria import Criterion, Needs, resolve
from secateur.errors import SecateurError, UsageError
from secateur.jobs.answers import losses_line
from secateur.jobs.detector import write_detector
from secateur.jobs.images import NOT_A_DETECTOR
from secateur.jobs.network_summary import summarise
from secateur.jobs.networks import Network, open_network, run_file
from secateur.jobs.pretrained import write_pretrained
from secateur.jobs.recipe_job import RecipeJob, search
from secateur.jobs.records import cut_record, fit_record
from secateur.jobs.settings import DATA_FREE, WITHOUT_DATA, PruneJob, is_pickled, takes_boxes
from secateur.jobs.task import Task, check_task, computing, idle_paths, open_task
from secateur.jobs.verifications import combined
from secateur.jobs.workplace import Workplace, open_workplace
from secateur.recipes import (
    Callback,
    Cut,
    LatencyOptions,
    Measured,
    Recipe,
    Training,
    fingerprint,
    run_recipe,
)
from secateur.settings import refuse_idle
from secateur.training.context import RunContext, launch
from secateur.training.evaluate import Evaluation
from secateur.training.events import report_note, report_progress
from secateur.training.loop import FitState
from secateur.training.resume import Journal
from secateur.training.run_folder import ANSWERS, NETWORK


def prune(job: PruneJob, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Prune a network to a budget.

    With data: rank, cut, fine-tune, repeat, and evaluate before and after on the test data. Without:
    one cut by the weights alone. Every cut is verified; the result is read back bit for bit.

    Args:
        job: its settings.
        callbacks: receive progress and notes.

    Returns:
        The content of ``summary.json``. The network is in ``checkpoints/best.safetensors``; one of
        transformers also in ``pretrained/``, if its config can describe it.

    Raises:
        SecateurError: the message says what is wrong; only the run folder was changed.
    """
    if job.data is None and takes_boxes(job.network, None):
        raise UsageError("--data: a detector is pruned with the data.yaml that it was trained with")
    run_file(job.network)
    criterion = resolve(job.recipe.criterion)
    if job.data is None and criterion.needs is not Needs.NOTHING:
        raise UsageError(
            f"criterion: {criterion.name} needs data; give --data, or choose one that needs only weights: "
            f"{DATA_FREE}"
        )
    with launch(computing(job)) as context:
        return _prune(job, criterion, context, callbacks)


def _task(job: PruneJob, device: torch.device) -> Task | None:
    """Open the data, if there is any, and check the settings for them."""
    if job.data is None:
        refuse_idle([NOT_A_DETECTOR], job.given)
        return None
    task = open_task(job.data, job.network, job.seed, detector=job.detector)
    if job.search is not None and not task.metric.is_share:
        raise UsageError(
            "--max-drop: not for language models, which have no accuracy; give a budget, such as --params 0.8"
        )
    check_task(task, job, device)
    return task


def _prune(
    job: PruneJob, criterion: Criterion, context: RunContext, callbacks: Sequence[Callback]
) -> dict[str, Any]:
    budget = job.budget
    task = _task(job, context.device)
    with open_workplace("prune", job, context, callbacks, idle_paths(task)) as place:
        network = task.open(job.network) if task else open_network(job.network)
        network.model.to(place.context.device)
        original = network.copy()
        if original.file is None or is_pickled(job.network.source):
            original = replace(original, file=place.save("original", original))
        evaluations: dict[str, Evaluation] = {}
        tuned: FitState | None = None
        if task is not None:
            network, cuts, tuned, evaluations = _with_data(job, place, network, task)
        else:
            place.begin(network, None)
            assert budget is not None  # a search needs data
            cuts = _without_data(job, place, network, budget)
        network = network.after(cut_record(cut) for cut in cuts)
        network = replace(network, file=place.finish(network))
        folders = {
            **write_pretrained(place, network, task),
            **write_detector(place.run.path, network, tuned, place.callbacks),
        }
        figures, conditions = place.compare({"baseline": original, "pruned": network}, evaluations)
        place.run.summarise(
            model=network.name,
            criterion=criterion.name,
            **figures,
            verification=combined([cut.verification for cut in cuts]),
            removed_branches=[name for cut in cuts for name in cut.plan.without],
            checkpoint=network.file,
            latency=conditions,
            **({} if tuned is None else {"training": fit_record(tuned)}),
            **folders,
        )
        _summarise(place, original, network, cuts)
    return dict(place.run.summary)


def _summarise(place: Workplace, before: Network, after: Network, cuts: Sequence[Cut]) -> None:
    """Save what a report needs about both networks; if this fails, the run continues."""
    timed, seconds = before.timed(place.job), place.job.latency_seconds
    report_progress(place.callbacks, "timing layers", 0, 1)
    try:
        with place.clock("timing layers"):
            found = summarise(before.model, after.model, cuts, before.example(), timed, seconds)
    except (SecateurError, RuntimeError) as error:
        report_note(place.callbacks, f"the summary of the network could not be written: {error}")
    else:
        place.run.remember(found.model_dump(mode="json"), NETWORK)
    report_progress(place.callbacks, "timing layers", 1, 1)


def _with_data(
    job: PruneJob, place: Workplace, network: Network, task: Task
) -> tuple[Network, Sequence[Cut], FitState | None, dict[str, Evaluation]]:
    """Prune with fine-tuning; evaluate before and after."""
    with place.clock("reading"):
        task = task.read(place.run.path, place.context)
    place.begin(network, task)
    answers: tuple[list[Tensor], list[Tensor]] = [], []
    before = place.evaluate(network.model, task, answers[0])
    report_note(place.callbacks, f"before: {before}")
    recipe_job = RecipeJob(job, place, network, task)
    with place.clock("pruning"):
        if job.budget is not None:
            result = recipe_job.prune(network.model, job.budget)
            cuts, tuned = result.cuts, next(reversed(result.fits), None)
            place.note_time(result.latency)
        else:
            assert job.search is not None
            network, best, path = search(job.search, recipe_job)
            cuts, tuned = best.cuts, best.tuned
            place.run.summarise(path=path)
    after = place.evaluate(network.model, task, answers[1])
    report_note(place.callbacks, f"after: {after}")
    # Of several processes, each has some of the answers.
    found = None if place.context.ranks.is_distributed else task.compare(*answers)
    if found is not None:
        place.run.remember(found, ANSWERS)
        line = losses_line(found)
        if line is not None:
            report_note(place.callbacks, line)
    place.run.summarise(**task.facts())
    return network, cuts, tuned, {"baseline": before, "pruned": after}


def _without_data(job: PruneJob, place: Workplace, network: Network, budget: Budget) -> Sequence[Cut]:
    """Prune in one cut by the weights only, without training."""
    report_note(
        place.callbacks,
        f"no data: channels are scored by their weights alone ({job.recipe.criterion}), nothing is "
        "trained, and accuracy is not measured; fine-tune the result before use",
    )
    known, asked = fingerprint(network.model), job.recipe
    given = {name: getattr(asked, name) for name in WITHOUT_DATA}
    recipe = Recipe.from_table({"preset": "one-shot", **given})
    training = Training(latency=LatencyOptions(inputs=network.timed(job)))
    context = replace(place.context, journal=Journal())  # one cut without training needs no resuming
    with place.clock("pruning"):
        result = run_recipe(network.model, network.example(), budget, recipe, training, context)
    place.note_time(result.latency)
    place.run.remember(Measured(known, result.scores, result.curves).to_dict())
    return result.cuts
