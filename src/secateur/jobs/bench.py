"""Cut the networks of a pruning job: once, or several times in a search."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from secateur.budget import Budget, WidthCurves
from secateur.budget.limits import WORDS
from secateur.criteria import Scores
from secateur.errors import UsageError
from secateur.graph.capture.program import owned
from secateur.jobs.networks import Network
from secateur.jobs.records import cut_record
from secateur.jobs.settings import FrontierJob, PruneJob, Search
from secateur.jobs.task import Task
from secateur.jobs.workplace import Workplace
from secateur.recipes import (
    Callback,
    Cut,
    Frontier,
    LatencyFit,
    LatencyOptions,
    Measured,
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
from secateur.training.evaluate import Evaluation, evaluate
from secateur.training.events import report_note
from secateur.training.loop import FitState
from secateur.training.resume import Journal
from secateur.training.run_folder import MEASURED, read_measured

_SECONDS_BETWEEN_WRITES = 5.0


@dataclass
class Bench(Callback):
    """Cut networks according to a job, and write measurements to the run folder.

    Attributes:
        job: its settings.
        place: the run folder, device and callbacks.
        network: the network before the job.
        task: the data for ranking, fine-tuning and validation.
        measured: scores and curves of the network before the job, once they are known.
        latency: the measurement before the last cut, if the budget limits latency.
        tuned: the last fine-tuning, once it is finished.
    """

    job: PruneJob | FrontierJob
    place: Workplace
    network: Network
    task: Task
    measured: Measured | None = None
    latency: LatencyFit | None = None
    tuned: FitState | None = None
    _latest: Measured | None = None
    _network: str = ""
    _cuts: list[Cut] = field(default_factory=list)
    _written: float = 0.0

    def __post_init__(self) -> None:
        own = self.place.run.path / MEASURED
        source = own if self.job.resume and own.is_file() else self.job.measured
        if source is not None:
            self.measured = self._latest = Measured.from_dict(read_measured(source))

    def cut(self, model: nn.Module, budget: Budget) -> tuple[Cut, ...]:
        """Cut a network to a budget in place, with fine-tuning; a checkpoint is kept at all times.

        Args:
            model: the network before the job, or a copy.
            budget: what may remain.

        Returns:
            The cuts.
        """
        self._cuts.clear()
        self._network = fingerprint(model)
        context = replace(self.context, save=lambda name, found: self.keep(name, model, found))
        example = self.network.example()
        result = run_recipe(
            model, example, budget, self.job.recipe, self.training(), context, loss_fn=self.task.loss_fn
        )
        self._remember(Measured(self._network, result.scores, result.curves))
        self.latency, self.tuned = result.latency, result.fits[-1] if result.fits else None
        return result.cuts

    def frontier(self, axis: tuple[Axis, int]) -> Frontier:
        """Compute the trade-off between cost and accuracy; nothing is trained, and no checkpoint is kept.

        Args:
            axis: the quantity that is limited, and the number of points.
        """
        self._network = fingerprint(self.network.model)
        training = self.training()
        if training.validation is None:
            training = replace(training, validation=self.task.test_batches())
        context = replace(self.context, journal=Journal())
        example = self.network.example()
        model, recipe = self.network.model, self.job.recipe
        found = run_frontier(model, example, axis, recipe, training, context, loss_fn=self.task.loss_fn)
        self._remember(found.measured)
        return found

    def training(self) -> Training:
        """Collect the batches, and how latency is measured."""
        return Training(
            batches=self.task.training_batches(),
            calibration=self.task.calibration_batches(),
            validation=self.task.validation_batches(),
            check_inputs=self._check_inputs(),
            latency=LatencyOptions(inputs=self.network.example(self.job.latency_batch)),
        )

    @property
    def context(self) -> RecipeContext:
        """Return the context of the job, with what is measured so far."""
        return replace(self.place.context, callbacks=[self, *self.place.callbacks], measured=self.measured)

    def keep(self, name: str, model: nn.Module, evaluation: Evaluation | None = None) -> Path:
        """Write a network to the run's checkpoints, with the cuts so far.

        Args:
            name: of the checkpoint.
            model: the network.
            evaluation: its evaluation on the validation data.
        """
        network = replace(self.network, model=model).after(cut_record(cut) for cut in self._cuts)
        return self.place.save(name, network, evaluation)

    def judge(self, model: nn.Module) -> Evaluation:
        """Evaluate a network on the validation images, which are not used for reported figures.

        Raises:
            UsageError: there are none.
        """
        batches = self.task.validation_batches()
        if batches is None:
            raise UsageError("a search needs validation images; leave data.held_out=0 out, or add val/")
        return evaluate(
            model,
            batches,
            context=self.place.context,
            task="validating",
        )

    def _check_inputs(self) -> Any:
        batches = self.task.validation_batches() or self.task.calibration_batches()
        inputs, _ = next(iter(batches))
        return owned(inputs, self.place.context.device)

    def on_cut(self, cut: Cut) -> None:
        """Collect a cut, for the checkpoints."""
        self._cuts.append(cut)

    def on_resume(self, cuts: Sequence[Cut]) -> None:
        """Take over the cuts of an interrupted run."""
        self._cuts[:] = cuts
        report_note(self.place.callbacks, f"continues after {len(cuts)} cuts")

    def on_scores(self, scores: Scores) -> None:
        """Write the scores to the run folder."""
        self._found(Measured(self._network, scores))

    def on_curves(self, curves: WidthCurves) -> None:
        """Write the curves so far to the run folder."""
        if self._latest is not None:
            self._found(replace(self._latest, curves=curves))

    def _found(self, measured: Measured) -> None:
        self._latest = measured
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._remember(measured)

    def _remember(self, measured: Measured) -> None:
        if measured != self.measured:
            self.measured = self._latest = measured
            self.place.run.remember(measured.to_dict())
            self._written = time.monotonic()


def search(settings: Search, bench: Bench) -> tuple[Network, Sequence[Cut], list[dict[str, Any]]]:
    """Search for the smallest network that stays within the allowed loss of accuracy.

    Args:
        settings: the accuracy that may be lost, and the number of tries.
        bench: cuts and evaluates networks.

    Returns:
        The network, its cuts, and every point of the path, with its checkpoint.
    """
    start = bench.judge(bench.network.model)
    report_note(
        bench.place.callbacks,
        f"the network as it is: {start}, standard error {100 * start.error:.1f} points; "
        f"at most {settings.max_drop:g} points may be lost",
    )
    tries: list[_Try] = [_Try(())]

    def attempt(model: nn.Module, share: float) -> nn.Module:
        tries.append(_Try(()))
        tries[-1] = _Try(bench.cut(model, Budget(**{settings.of: share})), bench.tuned)
        return model

    def judge(model: nn.Module) -> float:
        found = start if model is bench.network.model else bench.judge(model)
        if model is not bench.network.model:
            tries[-1] = replace(tries[-1], file=bench.keep(f"try-{len(tries) - 1}", model, found))
        return 100 * found.metric

    result = smallest_within(
        bench.network.model,
        settings.max_drop,
        attempt,
        judge,
        tries=settings.tries,
        callbacks=bench.place.callbacks,
    )
    path = [_point(tried, tries[tried.number]) for tried in result.path]
    failure = _failure(settings, result, start)
    if failure is not None:
        report_note(bench.place.callbacks, failure)
        bench.place.run.summarise(search_failed=failure)
    best = tries[result.best.number]
    bench.tuned = best.tuned
    network = replace(bench.network, model=result.model)
    bench.place.save("best", network.after(cut_record(cut) for cut in best.cuts))
    return network, best.cuts, path


def _failure(settings: Search, result: SearchResult, start: Evaluation) -> str | None:
    """Format that no network was accepted and how near the search came; ``None`` if one was."""
    if result.best.number:
        return None
    scored = [tried for tried in result.path[1:] if math.isfinite(tried.score)]
    near = "none of the budgets can be reached"
    if scored:
        nearest = max(scored, key=lambda tried: tried.score)
        near = (
            f"the nearest, try {nearest.number} with {nearest.share:.0%} of the {WORDS[settings.of]}, loses "
            f"{100 * start.metric - nearest.score:.2f} points on {start.examples:,} validation images "
            f"(standard error {100 * start.error:.1f})"
        )
    return (
        f"the search failed: no network that was tried loses at most {settings.max_drop:g} points; {near}. "
        "The original is kept; allow a larger drop, or more tries with --set search.tries=N"
    )


@dataclass(frozen=True)
class _Try:
    """The result of a search for one budget."""

    cuts: tuple[Cut, ...]
    tuned: FitState | None = None
    file: Path | None = None


def _point(tried: Tried, made: _Try) -> dict[str, Any]:
    return {
        "number": tried.number,
        "share": tried.share,
        "validation_top1": tried.score / 100 if math.isfinite(tried.score) else None,
        "held": tried.held,
        "cost": asdict(made.cuts[-1].plan.cost_after) if made.cuts else None,
        "checkpoint": made.file,
    }
