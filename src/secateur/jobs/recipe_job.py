"""Run the recipe of a job: once, several times in a search, or without training for a frontier."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from secateur.budget import Budget, WidthCurves
from secateur.budget.limits import QUANTITIES
from secateur.criteria import Scores
from secateur.jobs.networks import Network
from secateur.jobs.records import cut_record
from secateur.jobs.settings import FrontierJob, PruneJob, Search
from secateur.jobs.task import Task
from secateur.jobs.workplace import Workplace
from secateur.recipes import (
    Callback,
    Cut,
    Frontier,
    LatencyOptions,
    Measured,
    PruneResult,
    RecipeContext,
    SearchResult,
    Training,
    Tried,
    fingerprint,
    run_frontier,
    run_recipe,
    smallest_within,
)
from secateur.recipes.trade_off import Axis
from secateur.training.evaluate import Evaluation
from secateur.training.events import report_note
from secateur.training.loop import FitState
from secateur.training.metrics import MetricKind
from secateur.training.resume import Journal
from secateur.training.run_folder import MEASURED, read_measured

_SECONDS_BETWEEN_WRITES = 5.0


@dataclass
class _Recorder(Callback):
    """Write scores and width curves to the run folder while they are measured, and collect cuts.

    Attributes:
        place: the run folder and the callbacks.
        network: the :func:`fingerprint` of the network.
        measured: scores and curves of this network so far.
        cuts: made so far.
    """

    place: Workplace
    network: str
    measured: Measured | None
    cuts: list[Cut] = field(default_factory=list)
    _written: float = -math.inf

    def on_scores(self, scores: Scores) -> None:
        """Write the scores to the run folder."""
        self._record(Measured(self.network, scores))

    def on_curves(self, curves: WidthCurves) -> None:
        """Write the curves so far to the run folder."""
        assert self.measured is not None  # scores come first
        self._record(replace(self.measured, curves=curves))

    def on_cut(self, cut: Cut) -> None:
        """Collect a cut, for the checkpoints."""
        self.cuts.append(cut)

    def on_resume(self, cuts: Sequence[Cut]) -> None:
        """Take over the cuts of an interrupted run."""
        self.cuts[:] = cuts
        report_note(self.place.callbacks, f"continues after {len(cuts)} cuts")

    def _record(self, measured: Measured) -> None:
        self.measured = measured
        curves = measured.curves
        finished = curves is not None and measured.scores.keys() <= curves.keys() | curves.unmeasured.keys()
        if finished or time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.place.run.remember(measured.to_dict())
            self._written = time.monotonic()


@dataclass
class RecipeJob:
    """Run recipes on the network of a job.

    Attributes:
        job: its settings.
        place: the run folder, device and callbacks.
        network: the network before the job.
        task: the data for ranking, fine-tuning and validation.
        measured: scores and curves of the network before the job, once they are known.
    """

    job: PruneJob | FrontierJob
    place: Workplace
    network: Network
    task: Task
    measured: Measured | None = None

    def __post_init__(self) -> None:
        own = self.place.run.path / MEASURED
        source = own if self.job.resume and own.is_file() else self.job.measured
        if source is not None:
            self.measured = Measured.from_dict(read_measured(source))

    def prune(self, model: nn.Module, budget: Budget) -> PruneResult:
        """Prune a network to a budget in place, with fine-tuning; a checkpoint is kept at all times.

        Args:
            model: the network before the job, or a copy.
            budget: what may remain.
        """
        with self._recorded(model) as recorder:
            context = replace(
                self._context(recorder),
                save=lambda name, found: self.save(name, model, recorder.cuts, found),
            )
            example, training = self.network.example(), self.training(context)
            result = run_recipe(
                model, example, budget, self.job.recipe, training, context, loss_fn=self.task.loss_fn
            )
            recorder.measured = Measured(recorder.network, result.scores, result.curves)
        return result

    def frontier(self, by: Axis, points: int) -> Frontier:
        """Compute the trade-off between cost and accuracy; nothing is trained, and no checkpoint is kept.

        Args:
            by: the quantity that is limited.
            points: number of budgets.
        """
        model, example, recipe = self.network.model, self.network.example(), self.job.recipe
        with self._recorded(model) as recorder:
            context = replace(self._context(recorder), journal=Journal())
            training = self.training(context)
            if training.validation is None:
                training = replace(training, validation=self.task.test_batches())
            loss_fn = self.task.loss_fn
            found = run_frontier(model, example, by, points, recipe, training, context, loss_fn)
            recorder.measured = found.measured
        return found

    def training(self, context: RecipeContext) -> Training:
        """Collect the batches, and how latency is measured.

        Args:
            context: of the recipe.
        """
        training = self.task.training(context, self.job.recipe)
        return replace(training, latency=LatencyOptions(inputs=self.network.timed(self.job)))

    @contextmanager
    def _recorded(self, model: nn.Module) -> Iterator[_Recorder]:
        """Record what is measured of a network in a block, and write it to the run folder afterwards.

        If the block fails, what was measured is kept for another budget.
        """
        known = self.measured
        recorder = _Recorder(self.place, fingerprint(model), known)
        try:
            yield recorder
        finally:
            self.measured = recorder.measured
            if recorder.measured is not None and recorder.measured != known:
                self.place.run.remember(recorder.measured.to_dict())

    def _context(self, recorder: _Recorder) -> RecipeContext:
        """Return the context of the job, with what is measured so far."""
        callbacks = [recorder, *self.place.callbacks]
        return replace(self.place.context, callbacks=callbacks, measured=self.measured)

    def save(
        self, name: str, model: nn.Module, cuts: Iterable[Cut], evaluation: Evaluation | None = None
    ) -> Path:
        """Write a network to the run's checkpoints, with its cuts.

        Args:
            name: of the checkpoint.
            model: the network.
            cuts: the cuts that made it.
            evaluation: its evaluation on the validation data.
        """
        network = replace(self.network, model=model).after(map(cut_record, cuts))
        return self.place.save(name, network, evaluation)

    def judge(self, model: nn.Module) -> Evaluation:
        """Evaluate a network on the validation images.

        Raises:
            UsageError: there are none.
        """
        return self.task.evaluate(model, self.place.context, choosing=True)


@dataclass(frozen=True)
class Attempt:
    """A try of a search.

    Attributes:
        cuts: of its network; none if its budget cannot be reached, and of the original.
        tuned: its last fine-tuning.
        file: its checkpoint.
    """

    cuts: tuple[Cut, ...] = ()
    tuned: FitState | None = None
    file: Path | None = None


def search(settings: Search, job: RecipeJob) -> tuple[Network, Attempt, list[dict[str, Any]]]:
    """Search for the smallest network that stays within the allowed loss of accuracy.

    Args:
        settings: the accuracy that may be lost, and the number of tries.
        job: prunes and evaluates networks.

    Returns:
        The network, how it was made, and every point of the path, with its checkpoint.
    """
    place, original = job.place, job.network.model
    start = job.judge(original)
    error = f", standard error {100 * start.error:.1f} points" if start.examples else ""
    report_note(
        place.callbacks,
        f"the network as it is: {start}{error}; at most {settings.max_drop:g} points may be lost",
    )
    attempts = [Attempt()]

    def attempt(model: nn.Module, share: float) -> nn.Module:
        attempts.append(Attempt())
        result = job.prune(model, Budget(**{settings.of: share}))
        attempts[-1] = Attempt(result.cuts, next(reversed(result.fits), None))
        return model

    def judge(model: nn.Module) -> float:
        if model is original:
            return 100 * start.metric
        found, made = job.judge(model), attempts[-1]
        attempts[-1] = replace(made, file=job.save(f"try-{len(attempts) - 1}", model, made.cuts, found))
        return 100 * found.metric

    result = smallest_within(
        original, settings.max_drop, attempt, judge, tries=settings.tries, callbacks=place.callbacks
    )
    path = [_point(tried, attempts[tried.number], start.kind) for tried in result.path]
    failure = _failure(settings, result, start)
    if failure is not None:
        report_note(place.callbacks, failure)
        place.run.summarise(search_failed=failure)
    best = attempts[result.best.number]
    job.save("best", result.model, best.cuts)
    return replace(job.network, model=result.model), best, path


def _failure(settings: Search, result: SearchResult, start: Evaluation) -> str | None:
    """Format that no network was accepted and how near the search came; ``None`` if one was."""
    if result.best.number:
        return None
    scored = [tried for tried in result.path[1:] if math.isfinite(tried.score)]
    near = "none of the budgets can be reached"
    if scored:
        nearest = max(scored, key=lambda tried: tried.score)
        unit = QUANTITIES[settings.of].unit
        images = "the validation images"
        if start.examples:
            images = f"{start.examples:,} validation images (standard error {100 * start.error:.1f})"
        near = (
            f"the nearest, try {nearest.number} with {nearest.share:.0%} of the {unit}, loses "
            f"{100 * start.metric - nearest.score:.2f} points on {images}"
        )
    return (
        f"the search failed: no network that was tried loses at most {settings.max_drop:g} points; {near}. "
        "The original is kept; allow a larger drop, or more tries with --set search.tries=N"
    )


def _point(tried: Tried, made: Attempt, metric: MetricKind) -> dict[str, Any]:
    return {
        "number": tried.number,
        "share": tried.share,
        f"validation_{metric.key}": tried.score / 100 if math.isfinite(tried.score) else None,
        "held": tried.held,
        "cost": asdict(made.cuts[-1].plan.cost_after) if made.cuts else None,
        "checkpoint": made.file,
    }
