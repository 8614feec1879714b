"""Run a recipe: score, cut, reconstruct, fine-tune, repeat (arXiv 1611.06440, section 2)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

import numpy as np
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from secateur.batches import LossFunction, refuse_one_shot
from secateur.budget import Budget, WidthCurves, Widths
from secateur.criteria import Criterion, GateCriterion, Needs, ScoreCollector, Scores, resolve, score, watch
from secateur.data.loader import at_epoch, epoch_of, set_epoch
from secateur.errors import BudgetError, StoppedError, UsageError
from secateur.graph import ChannelGraph, ExampleInputs
from secateur.graph.capture.program import copied_inputs
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.cutting.tensors import copy_with
from secateur.optimizer_state import check_optimizer
from secateur.plan import PruningPlan
from secateur.ranks import RankBatch, rank_batch, split_across_ranks
from secateur.recipes.attention import attention_graphs, curves_of_same_groups, scores_fit, unit_of
from secateur.recipes.context import RecipeContext, Training
from secateur.recipes.cutting import Cut, cut
from secateur.recipes.latency_tuner import LatencyFit, LatencyOptions, LatencyTuner
from secateur.recipes.recipe import Recipe
from secateur.recipes.result import PruneResult, composed
from secateur.recipes.schedule import PruningSchedule, ScheduledStep
from secateur.recipes.state import PART, RecipeState, load_state
from secateur.recovery import CurveOptions, LeastSquares, masked_damage, reconstruct, width_curves
from secateur.training.context import save_nothing
from secateur.training.distillation import Teacher, require_images
from secateur.training.evaluate import Batches
from secateur.training.events import report_note, report_progress, tracked
from secateur.training.loop import FIT, FitOptions, FitState, fit
from secateur.training.losses import is_cross_entropy, next_token_loss, with_auxiliaries
from secateur.training.optimizers import make_optimizer
from secateur.training.process_group import drop_wrappers
from secateur.training.resume import Entry, restore, snapshot
from secateur.training.settings import FitSettings
from secateur.verification import Expectation

_SECONDS_BETWEEN_WRITES = 30.0

_ATTENTION = "attention"
"""The part of the journal that keeps which unit of attention was chosen."""


def run_recipe(
    model: nn.Module,
    example_inputs: ExampleInputs,
    budget: Budget,
    recipe: Recipe,
    training: Training,
    context: RecipeContext,
    *,
    criterion: Criterion | None = None,
    loss_fn: LossFunction | None = None,
) -> PruneResult:
    """Prune a network in place.

    Scores are collected during the last epoch of the fine-tuning before a cut, which costs no extra pass.
    The calibration examples are read for the scores only if there is no such epoch (before the first cut, or
    without epochs between). The network is traced once.

    Args:
        model: a trained network on the context's device; cut and trained in place, its parameters keep their
            identity.
        example_inputs: a tensor, a tuple of arguments or a dict of named ones, batch first.
        budget: what may remain.
        recipe: the settings.
        training: data and tools for training and evaluation.
        context: device, callbacks and journal.
        criterion: the rule that scores channels, instead of the recipe's.
        loss_fn: mean loss of a batch, as :func:`secateur.prune` takes it.

    Returns:
        The network, what was removed, and how it was verified.

    Raises:
        TraceError: the network cannot be captured.
        BudgetError: the budget cannot be met; nothing was cut.
        UsageError: the recipe needs batches that are not given; measurements belong to another network; the
            optimizer contains no parameter of this one; or inputs are to be flipped that are not images.
        VerificationError: a cut is wrong, or could not be checked; the network is restored to before that
            cut.
        TrainingError: the loss is not finite.
        StoppedError: the user stopped it.
    """
    criterion = criterion or resolve(recipe.criterion)
    refuse_wrapped(model)
    _check_batches(recipe, training, criterion)
    _check_depth(recipe, criterion)
    check_optimizer(training.optimizer, model)
    device = context.device
    example_inputs = copied_inputs(example_inputs, device)
    checked = (
        example_inputs if training.check_inputs is None else copied_inputs(training.check_inputs, device)
    )
    training = replace(training, check_inputs=checked)
    teacher = _teacher(model, example_inputs, recipe, loss_fn)
    if context.measured is not None:
        context.measured.check(model, criterion.name)
    modules, widths = left_alone(model, recipe.widths)
    graphs = [] if context.graph is None else [context.graph]
    if not graphs:
        report_progress(context.callbacks, "tracing", 0, 1)
        graphs = attention_graphs(model, example_inputs, modules, recipe.attention)
        report_progress(context.callbacks, "tracing", 1, 1)

    def runner_of(graph: ChannelGraph) -> _RecipeRun:
        tuner = time_limit = None
        if budget.latency is not None or widths.multiple_of == "auto":
            options = training.latency or LatencyOptions()
            tuner = options.tuner(model, graph, example_inputs, context.callbacks, context.interruption)
        if tuner is not None and budget.latency is not None:
            # A share of the time refers to the whole network, which is measured beside the smaller one.
            time_limit = _TimeLimit(tuner, budget.latency, copy_with(model, {}))
        return _RecipeRun(
            model=model,
            graph=graph,
            schedule=PruningSchedule.of(budget, graph, recipe, widths, tuner.table if tuner else None),
            training=training,
            context=context,
            criterion=criterion,
            loss_fn=loss_fn,
            teacher=teacher,
            time_limit=time_limit,
        )

    runner = runner_of(graphs[0]) if len(graphs) == 1 else _with_best_attention(graphs, runner_of, context)
    graph = runner.graph
    try:
        runner.run()
    except StoppedError:
        context.save("last", None)
        context.journal.flush()
        raise
    return runner.result(graph)


def _with_best_attention(
    graphs: Sequence[ChannelGraph], runner_of: Callable[[ChannelGraph], _RecipeRun], context: RecipeContext
) -> _RecipeRun:
    """Choose among units of attention by the damage of the plan for the whole budget.

    A run that is resumed, or that starts from earlier measurements, keeps the unit that it had.
    """
    known = context.journal.recall(_ATTENTION)
    if context.measured is not None:
        scores = context.measured.scores
        graphs = [graph for graph in graphs if scores_fit(graph, scores)][:1] or graphs[:1]
    elif known is not None:
        graphs = [graphs[known.facts["choice"]]]
    if len(graphs) == 1:
        runner = runner_of(graphs[0])
    else:
        runners, errors = [], []
        for graph in graphs:
            try:
                runners.append(runner_of(graph))
            except BudgetError as error:
                errors.append(error)
        if not runners:
            raise errors[0]
        found = [runner.measure_damage(runners[0]) for runner in runners]
        best = context.ranks.broadcast(int(np.argmin(found)))
        runner = runners[best]
        for one, damage in zip(runners, found, strict=True):
            chosen = "chosen" if one is runner else "not chosen"
            report_note(
                context.callbacks,
                f"attention: removing {unit_of(one.graph)} changes the outputs by {damage:.3g}, {chosen}",
            )
        runner.report_measurements()
    choice = next(number for number, graph in enumerate(graphs) if graph is runner.graph)
    context.journal.put(_ATTENTION, known or Entry({"choice": choice}))
    return runner


@dataclass(frozen=True)
class _TimeLimit:
    """The limit on time: how it is measured, its amount, and the network that shares refer to."""

    tuner: LatencyTuner
    allowed: float | str
    whole: nn.Module


@dataclass(frozen=True)
class _Measurements:
    """Scores of a network, and its width curves if they are measured."""

    scores: Scores
    curves: WidthCurves | None = None


@dataclass
class _RecipeRun:
    """One run of a recipe: its arguments, and the state that changes from step to step.

    Attributes:
        model: the network, cut in place.
        graph: its channel graph after the cuts so far.
        schedule: makes the next plan.
        training: batches, and the evaluation.
        context: device, callbacks and journal.
        criterion: scores channels.
        loss_fn: the loss, if not cross-entropy.
        teacher: the unpruned network, if the recipe distils.
        time_limit: the limit on latency, if there is one.
        state: the progress of the run.
        whole: scores and width curves of the whole network, once they are known.
        latency: the measurement before the last cut.
        optimizer: the optimizer of the network.
        kept_at: the time when the network was last written to disk.
    """

    model: nn.Module
    graph: ChannelGraph
    schedule: PruningSchedule
    training: Training
    context: RecipeContext
    criterion: Criterion
    loss_fn: LossFunction | None
    teacher: Teacher | None
    time_limit: _TimeLimit | None
    state: RecipeState = field(default_factory=RecipeState)
    whole: _Measurements | None = None
    latency: LatencyFit | None = None
    optimizer: Optimizer | None = None
    kept_at: float = -math.inf

    def __post_init__(self) -> None:
        self.optimizer = self.training.optimizer
        if self.context.measured is not None:
            self.whole = _Measurements(self.context.measured.scores, self.context.measured.curves)

    @property
    def recipe(self) -> Recipe:
        """Return the recipe."""
        return self.schedule.recipe

    @property
    def batches(self) -> Batches:
        """Return the training batches."""
        return () if self.training.batches is None else self.training.batches

    @property
    def check_inputs(self) -> ExampleInputs:
        """Return the inputs for verification."""
        assert self.training.check_inputs is not None
        return self.training.check_inputs

    @property
    def calibration(self) -> Batches:
        """Return the batches for scores, measurements and reconstruction."""
        return self.batches if self.training.calibration is None else self.training.calibration

    def run(self) -> None:
        """Make all cuts, with the fine-tuning between and after them."""
        between, finetune = self.recipe.between, self.recipe.finetune
        trains, own_optimizer = _trains(self.recipe), self.training.optimizer is None
        if own_optimizer and (trains or _several(self.recipe)):
            self.optimizer = make_optimizer(self.model, between.optimizer)
        self.resume()
        while not self.state.last:
            self.state.step += 1
            found = self.measure()
            if not self.state.cuts:
                self.whole = found
            step = self.next_step(self.ranking(found))
            self.state.last = step.last
            # Otherwise the step was reached before, and the scores are still valid.
            if not step.plan.removes_nothing:
                self.make_cut(step.plan)
                if not step.last:
                    self.tune()
        if not trains:
            return
        if own_optimizer and finetune.optimizer != between.optimizer:
            self.optimizer = make_optimizer(self.model, finetune.optimizer)
        if self.training.train is not None:
            self.note_fit(self.training.train(self.model, finetune))
        else:
            self.fit(finetune, "after the last cut", self.context, self.training.validation)

    def result(self, original: ChannelGraph) -> PruneResult:
        """Collect the result of the run.

        Args:
            original: the graph of the unpruned network.
        """
        assert self.whole is not None
        cuts = tuple(self.state.cuts)
        plan = composed(original, [cut.plan for cut in cuts])
        if cuts:
            verification = cuts[-1].verification
        else:
            verification = Expectation.of(self.model, plan, self.check_inputs).check(self.model)
        return PruneResult(
            model=self.model,
            plan=plan,
            verification=verification,
            scores=self.whole.scores,
            curves=self.whole.curves,
            cuts=cuts,
            fits=tuple(self.state.fits),
            graph=self.graph,
            latency=self.latency,
        )

    def resume(self) -> None:
        """Continue from the state of an earlier run that was killed, if there was one."""
        journal = self.context.journal
        entry = journal.recall(PART)
        if entry is None:
            return
        self.state, self.graph = load_state(entry.facts, self.model, self.graph)
        if entry.tensors:  # otherwise, the training after the last cut resumes by itself
            assert self.optimizer is not None
            restore(entry, self.model, self.optimizer)
        set_epoch(self.batches, entry.facts["loader_epoch"])
        for callback in self.context.callbacks:
            callback.on_resume(tuple(self.state.cuts))
        journal.put(PART, Entry(entry.facts))
        if not self.state.tuned and not self.state.last:
            self.tune()

    def saved_state(self) -> dict[str, Any]:
        """Convert the state to plain values, with the number of the next pass over the training batches."""
        return {**self.state.to_dict(), "loader_epoch": epoch_of(self.batches)}

    def measure(self, *, record: bool = True, resume: WidthCurves | None = None) -> _Measurements:
        """Measure the scores of the present network, and its width curves if the recipe uses them.

        Known measurements of the whole network are not repeated.

        Args:
            record: whether callbacks receive what is measured of the whole network, and not only progress.
            resume: curves of the same groups, which are not measured again.
        """
        callbacks, whole = self.context.callbacks, not self.state.cuts
        receivers = callbacks if record and whole else ()
        known = self.whole if whole else None
        scores = known.scores if known else self.state.scores
        if scores is None:
            scores = self.score()
            for callback in receivers:
                callback.on_scores(scores)
        known_curves = known.curves if known else resume
        if self.recipe.allocation != "curves":
            return _Measurements(scores, known_curves)

        def progress(curves: WidthCurves, total: int) -> None:
            report_progress(callbacks, "measuring widths", curves.measured, total)
            if curves.measured > (known_curves.measured if known_curves else 0):
                for callback in receivers:
                    callback.on_curves(curves)
            self.context.interruption.check()

        depth = self.recipe.widths.depth
        curves = width_curves(
            self.model,
            self.graph,
            {} if depth == "only" else scores,
            self.some_batches(self.recipe.curve_batches),
            CurveOptions(fit=LeastSquares(ridge=self.recipe.reconstruct_ridge), branches=depth != "off"),
            resume=known_curves,
            progress=progress,
            across_ranks=self.context.ranks.is_distributed,
        )
        return _Measurements(scores, curves)

    def ranking(self, found: _Measurements) -> Mapping[str, Any]:
        """Return what the next plan is made from: scores or width curves."""
        if self.recipe.allocation != "curves":
            return found.scores
        assert found.curves is not None
        return found.curves

    def measure_damage(self, first: _RecipeRun) -> float:
        """Measure how the plan for the whole budget changes the outputs; callbacks receive progress only.

        Args:
            first: the run of the same network, with other units of attention, that is measured first: groups
                that are the same have the same curves.
        """
        curves = None if first.whole is None else first.whole.curves
        known = None if curves is None else curves_of_same_groups(self.graph, first.graph, curves)
        self.whole = self.measure(record=False, resume=known)
        plan = self.schedule.plan(self.graph, self.ranking(self.whole), self.schedule.goal)
        given = self.training.batches is not None or self.training.calibration is not None
        batches = self.calibration if given else [(self.check_inputs, None)]
        with at_epoch(self.calibration, 0):
            return masked_damage(self.model, self.graph, plan, batches)

    def report_measurements(self) -> None:
        """Report scores and curves that were measured before the run began."""
        assert self.whole is not None
        for callback in self.context.callbacks:
            callback.on_scores(self.whole.scores)
            if self.whole.curves is not None:
                callback.on_curves(self.whole.curves)

    def next_step(self, ranking: Mapping[str, Any]) -> ScheduledStep:
        """Decide the next step; in a distributed run the first process decides for all."""
        ranks = self.context.ranks
        if not ranks.is_distributed:
            return self.own_step(ranking)
        decided: dict[str, Any] = {}
        if ranks.is_main:
            step = self.own_step(ranking)
            decided = {
                "keep": {name: list(kept) for name, kept in step.plan.keep.items()},
                "without": list(step.plan.without),
                "last": step.last,
            }
        decided = ranks.broadcast(decided)
        keep = {name: tuple(kept) for name, kept in decided["keep"].items()}
        return ScheduledStep(PruningPlan(self.graph, keep, tuple(decided["without"])), decided["last"])

    def own_step(self, ranking: Mapping[str, Any]) -> ScheduledStep:
        """Decide the next step; the last one is corrected until its measured time is within the limit."""
        step = self.schedule.step(self.graph, ranking, self.state.step)
        limit = self.time_limit
        if limit is None or not step.last:
            return step

        def plan_for(limits: Mapping[str, int]) -> PruningPlan:
            return self.schedule.plan(self.graph, ranking, limits)

        self.latency = limit.tuner.plan(limit.allowed, self.schedule.goal, plan_for, self.model, limit.whole)
        for callback in self.context.callbacks:
            callback.on_latency(self.latency)
        return replace(step, plan=self.latency.plan)

    def some_batches(self, count: int) -> Iterator[Any]:
        """Return the first batches of a pass, for reconstruction or for measuring width curves."""
        # The number of the pass depends only on the cut, not on what was read before a kill.
        with at_epoch(self.calibration, len(self.state.cuts)):
            yield from islice(iter(self.calibration), count)

    def make_cut(self, plan: PruningPlan) -> None:
        """Cut the network, its optimizer and its graph."""
        context = self.context
        drop_wrappers(context.ranks)
        before = copy_with(self.model, {}) if self.recipe.reconstruct else None
        verification = cut(self.model, plan, self.check_inputs, self.optimizer)
        if before is not None:
            shown = self.some_batches(self.recipe.reconstruct_batches)
            reconstruct(before, self.model, plan, shown, LeastSquares(ridge=self.recipe.reconstruct_ridge))
        self.graph = self.graph.after(plan)
        done = Cut(self.state.step, self.schedule.steps, plan, verification)
        self.state.cuts.append(done)
        self.state.scores, self.state.tuned = None, False
        for callback in context.callbacks:
            callback.on_cut(done)
        context.journal.put(PART, Entry(self.saved_state()))
        # With few updates after each cut, writing would take longer than training.
        if time.monotonic() - self.kept_at > _SECONDS_BETWEEN_WRITES:
            context.save("last", None)
            self.kept_at = time.monotonic()

    def score(self) -> Scores:
        """Score the channels in a separate pass over the calibration examples."""
        if self.criterion.needs is Needs.NOTHING:
            return score(self.model, self.graph, self.criterion)
        loss_fn = self.loss_fn
        if is_cross_entropy(loss_fn) or (_trains(self.recipe) and self.training.train is None):
            loss_fn = with_auxiliaries(loss_fn or cross_entropy, own=loss_fn is None)  # as in training
        # Of these criteria, the scores do not depend on which examples are in a batch.
        alone = self.loss_fn is next_token_loss and isinstance(self.criterion, GateCriterion)
        batches = _ScoringBatches(self.calibration, self.recipe.scoring_batches, self.context, alone)
        together = self.context.ranks.is_distributed
        with at_epoch(self.calibration, len(self.state.cuts)):
            return score(self.model, self.graph, self.criterion, batches, loss_fn, across_ranks=together)

    def tune(self) -> None:
        """Fine-tune after a cut that is not the last, and collect scores in the last epoch."""
        self.state.scores = self.tuned_scores()
        self.state.tuned = True
        journal = self.context.journal
        journal.drop(FIT)
        if journal:
            assert self.optimizer is not None
            taken = snapshot(self.model, self.optimizer)
            journal.record(PART, Entry({**self.saved_state(), **taken.facts}, taken.tensors))
            journal.put(PART, Entry(self.saved_state()))

    def tuned_scores(self) -> Scores | None:
        """Fine-tune; return scores from the last epoch, if the criterion can observe training."""
        settings = self.recipe.between
        if not settings.trains:
            return None
        if self.training.train is not None:
            self.note_fit(self.training.train(self.model, settings))
            return None
        needs = self.criterion.needs
        observes = needs in (Needs.FORWARD, Needs.BACKWARD) and not self.criterion.needs_targets
        together = self.context.ranks.is_distributed
        observer = watch(self.model, self.graph, self.criterion, across_ranks=together) if observes else None
        phase = f"after cut {len(self.state.cuts)}"
        # Only networks within the budget can be the best network.
        settings = settings.model_copy(update={"keep_best": False, "patience": None})
        if settings.updates is None:
            self.fit(settings, phase, self.context, self.training.validation, observer)
        else:
            # After a few updates, neither an evaluation nor a file is worth its time.
            self.fit(settings, phase, replace(self.context, save=save_nothing), None, observer)
        return observer.scores() if observer else None

    def note_fit(self, done: object) -> None:
        """Keep what a training of the caller's returned, if that describes the training."""
        if isinstance(done, FitState):
            self.state.fits.append(done)

    def fit(
        self,
        settings: FitSettings,
        phase: str,
        context: RecipeContext,
        validation: Batches | None,
        observer: ScoreCollector | None = None,
    ) -> None:
        """Fine-tune for one phase; an optimizer of the user's keeps its learning rate."""
        done = fit(
            self.model,
            self.batches,
            settings,
            FitOptions(
                validation=validation,
                metric=self.training.metric,
                optimizer=self.optimizer,
                find_rate=self.training.optimizer is None,
                loss_fn=self.loss_fn,
                teacher=self.teacher,
                observe=observer,
                phase=phase,
                context=context,
            ),
        )
        self.state.fits.append(done)


@dataclass(frozen=True)
class _ScoringBatches:
    """Split batches among processes for scoring, and report progress.

    Attributes:
        batches: the complete batches.
        most: number of batches; all if not given.
        context: the processes and the callbacks.
        alone: whether each example is scored alone. Blocks of text are: what a backward pass keeps of a few
            hundred tokens, with scores for a whole vocabulary, takes as much memory as the network.
    """

    batches: Batches
    most: int | None
    context: RecipeContext
    alone: bool = False

    def __iter__(self) -> Iterator[Any]:
        return (part.batch for part in self.split(0, 1))

    def split(self, rank: int, world_size: int) -> Iterator[RankBatch]:
        """Return the part of each batch that belongs to this process (:class:`secateur.ranks.Splittable`)."""
        total = len(self.batches) if isinstance(self.batches, Sized) else None
        if self.most is not None and total is not None:
            total = min(self.most, total)
        context = self.context
        parts = islice(split_across_ranks(self.batches, context.ranks), self.most)
        for part in tracked(parts, "scoring", context.callbacks, context.interruption, total):
            if self.alone and not context.ranks.is_distributed:
                for number in range(part.examples):
                    yield replace(rank_batch(part.batch, number, part.examples), total=1)
            else:
                yield part


def _several(recipe: Recipe) -> bool:
    """Return whether there may be more than one cut."""
    return recipe.steps > 1 or recipe.channels_per_step is not None


def _trains(recipe: Recipe) -> bool:
    """Return whether a recipe trains at all."""
    phases = [recipe.finetune, *([recipe.between] if _several(recipe) else [])]
    return any(phase.trains for phase in phases)


def _check_batches(recipe: Recipe, training: Training, criterion: Criterion) -> None:
    """Refuse a recipe that needs batches which are missing, or which can be read only once.

    Raises:
        UsageError: batches are missing; the message names what needs them, and what to write instead.
    """
    trains = _trains(recipe) and training.train is None
    users = {
        f"criterion '{criterion.name}'": criterion.needs is not Needs.NOTHING,
        "allocation='curves'": recipe.allocation == "curves",
        "reconstruct=True": recipe.reconstruct,
    }
    reads = [name for name, needs in users.items() if needs]
    missing = reads if training.batches is None and training.calibration is None else []
    missing = [*missing, *(["fine-tuning"] if trains and training.batches is None else [])]
    if missing:
        raise UsageError(
            f"there are no batches, which {' and '.join(missing)} need: pass batches=, or prune by the "
            "weights only, with criterion='magnitude' and recipe='one-shot'"
        )
    if trains or _several(recipe) or len(reads) > 1:
        refuse_one_shot(training.batches)
    refuse_one_shot(training.calibration, "calibration")
    refuse_one_shot(training.validation, "validation")


def _check_depth(recipe: Recipe, criterion: Criterion) -> None:
    """Refuse a criterion that does not score what is to be removed.

    Raises:
        UsageError: it scores no channels, or no residual branches.
    """
    depth = recipe.widths.depth
    if depth != "only" and not criterion.scores_channels:
        raise UsageError(
            f"criterion '{criterion.name}' scores residual branches only: set widths.depth to 'only', or "
            "take another criterion, such as 'taylor'"
        )
    if depth != "off" and recipe.allocation != "curves" and not criterion.scores_branches:
        raise UsageError(
            f"criterion '{criterion.name}' does not score residual branches, which widths.depth removes: "
            "take 'taylor', or allocation 'curves', or set widths.depth to 'off'"
        )


def left_alone(model: nn.Module, widths: Widths) -> tuple[list[str], Widths]:
    """Split what is ignored into modules, which are traced as frozen, and groups, which plans leave whole.

    Args:
        model: the network.
        widths: which widths groups may have.

    Returns:
        The paths of the modules, and the widths without them.
    """
    paths = [path for path, _ in model.named_modules() if path]
    modules = [path for path in paths if any(fnmatchcase(path, name) for name in widths.ignore)]
    groups = [name for name in widths.ignore if not any(fnmatchcase(path, name) for path in paths)]
    # Modules that are left alone also keep the residual branches that they are in.
    return modules, widths if widths.depth != "off" else widths.changed(ignore=groups)


def _teacher(
    model: nn.Module, example_inputs: ExampleInputs, recipe: Recipe, loss_fn: LossFunction | None
) -> Teacher | None:
    """Copy the network as the teacher, if the recipe distils scores of classes or tokens, or all outputs."""
    distillation, is_language = recipe.distillation, loss_fn is next_token_loss
    weight = distillation.weight if is_cross_entropy(loss_fn) or is_language else 0.0
    if not (weight or distillation.outputs) or not _trains(recipe):
        return None
    if weight and distillation.flip:
        require_images(example_inputs)
    return Teacher(
        copy_with(model, {}),
        weight,
        distillation.temperature,
        distillation.flip,
        reverse=distillation.divergence == "reverse",
        dim=-1 if is_language else 1,
        outputs_weight=distillation.outputs,
    )
