"""Run a recipe: score, cut, reconstruct, fine-tune, repeat (arXiv 1611.06440, section 2)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from secateur.batches import LossFunction, refuse_one_shot
from secateur.budget import Budget, Widths
from secateur.criteria import Criterion, Needs, ScoreCollector, Scores, resolve, watch
from secateur.data.loader import epoch_of, set_epoch
from secateur.errors import StoppedError, UsageError
from secateur.graph import ChannelGraph, ExampleInputs
from secateur.graph.capture.program import copied_inputs
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.cutting.tensors import copy_with
from secateur.optimizer_state import check_optimizer
from secateur.plan import PruningPlan
from secateur.recipes.attention import attention_graphs
from secateur.recipes.context import RecipeContext, Training
from secateur.recipes.cut_planner import CutPlanner, choose_planner
from secateur.recipes.cutting import Cut, cut
from secateur.recipes.latency_tuner import LatencyFit
from secateur.recipes.measuring import Measurements, Subject, measure
from secateur.recipes.recipe import Recipe
from secateur.recipes.result import PruneResult, composed
from secateur.recipes.schedule import ScheduledStep
from secateur.recipes.state import PART, RecipeState
from secateur.recovery import LeastSquares, reconstruct
from secateur.training.context import save_nothing
from secateur.training.distillation import Teacher, require_images
from secateur.training.evaluate import Batches
from secateur.training.events import report_progress
from secateur.training.loop import FIT, FitOptions, FitState, fit
from secateur.training.losses import is_cross_entropy, next_token_loss
from secateur.training.optimizers import make_optimizer
from secateur.training.process_group import drop_wrappers
from secateur.training.resume import Entry, restore, snapshot
from secateur.training.settings import FitSettings
from secateur.verification import Expectation

_SECONDS_BETWEEN_WRITES = 30.0


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
    example_inputs = copied_inputs(example_inputs, context.device)
    subject = Subject.of(model, example_inputs, recipe, training, context, criterion, loss_fn)
    teacher = _teacher(model, example_inputs, recipe, loss_fn)
    if context.measured is not None:
        context.measured.check(model, criterion.name)
    modules, widths = left_alone(model, recipe.widths)
    graphs = [] if context.graph is None else [context.graph]
    if not graphs:
        report_progress(context.callbacks, "tracing", 0, 1)
        graphs = attention_graphs(model, example_inputs, modules, recipe.attention)
        report_progress(context.callbacks, "tracing", 1, 1)
    planner_of = partial(
        CutPlanner.of, subject=subject, budget=budget, widths=widths, example_inputs=example_inputs
    )
    planner, whole = choose_planner(graphs, planner_of, subject)
    optimizer = training.optimizer
    if optimizer is None and (recipe.trains or recipe.several_cuts):
        optimizer = make_optimizer(model, recipe.between.optimizer)
    run = _RecipeRun(subject, planner, teacher, RecipeState(planner.graph), optimizer)
    try:
        whole = run.resume() or whole or _measured_whole(subject, planner.graph)
        run.run(whole)
    except StoppedError:
        context.save("last", None)
        context.journal.flush()
        raise
    return run.result(whole)


def _measured_whole(subject: Subject, graph: ChannelGraph) -> Measurements:
    """Measure the network before its first cut; what is known of it is not measured again."""
    known, callbacks = subject.context.measured, subject.context.callbacks
    if known is None:
        return measure(subject, graph, receivers=callbacks)
    return measure(subject, graph, scores=known.scores, curves=known.curves, receivers=callbacks)


@dataclass
class _RecipeRun:
    """The loop of a recipe.

    Attributes:
        subject: the network, cut in place, and what it is trained with.
        planner: makes the plans.
        teacher: the unpruned network, if the recipe distils.
        state: the progress of the run.
        optimizer: the optimizer of the network, if it is trained or cut several times.
        latency: the measurement before the last cut.
        kept_at: the time when the network was last written to disk.
    """

    subject: Subject
    planner: CutPlanner
    teacher: Teacher | None
    state: RecipeState
    optimizer: Optimizer | None
    latency: LatencyFit | None = None
    kept_at: float = -math.inf

    def run(self, whole: Measurements) -> None:
        """Make all cuts, with the fine-tuning between and after them.

        Args:
            whole: what was measured of the whole network.
        """
        subject, state = self.subject, self.state
        recipe, training = subject.recipe, subject.training
        while not state.last:
            state.step += 1
            cuts = len(state.cuts)
            found = measure(subject, state.graph, cuts, scores=state.scores) if cuts else whole
            step = self.next_step(found.ranking(recipe))
            state.last = step.last
            # Otherwise the step was reached before, and the scores are still valid.
            if not step.plan.removes_nothing:
                self.make_cut(step.plan)
                if not step.last:
                    self.tune()
        if not recipe.trains:
            return
        if training.optimizer is None and recipe.finetune.optimizer != recipe.between.optimizer:
            self.optimizer = make_optimizer(subject.model, recipe.finetune.optimizer)
        if training.train is not None:
            self.note_fit(training.train(subject.model, recipe.finetune))
        else:
            self.fit(recipe.finetune, "after the last cut", subject.context, training.validation)

    def result(self, whole: Measurements) -> PruneResult:
        """Collect the result of the run.

        Args:
            whole: what was measured of the whole network.
        """
        model, cuts = self.subject.model, tuple(self.state.cuts)
        plan = composed(self.planner.graph, [cut.plan for cut in cuts])
        if cuts:
            verification = cuts[-1].verification
        else:
            verification = Expectation.of(model, plan, self.subject.check_inputs).check(model)
        return PruneResult(
            model=model,
            plan=plan,
            verification=verification,
            scores=whole.scores,
            curves=whole.curves,
            cuts=cuts,
            fits=tuple(self.state.fits),
            graph=self.state.graph,
            latency=self.latency,
        )

    def resume(self) -> Measurements | None:
        """Continue from the state of an earlier run that was killed, if there was one.

        Returns:
            What is known of the whole network, or is measured again; ``None`` if the run begins.
        """
        subject, context, journal = self.subject, self.subject.context, self.subject.context.journal
        entry = journal.recall(PART)
        if entry is None:
            return None
        known = context.measured
        whole = Measurements(known.scores, known.curves) if known else measure(subject, self.planner.graph)
        self.state = RecipeState.repeated(entry.facts, subject.model, self.planner.graph)
        if entry.tensors and self.optimizer is not None:
            restore(entry, subject.model, self.optimizer)
        # Without tensors, the training after the last cut resumes by itself.
        set_epoch(subject.batches, entry.facts["loader_epoch"])
        for callback in context.callbacks:
            callback.on_resume(tuple(self.state.cuts))
        journal.put(PART, Entry(entry.facts))
        if not self.state.tuned and not self.state.last:
            self.tune()
        return whole

    def saved_state(self) -> dict[str, Any]:
        """Convert the state to plain values, with the number of the next pass over the training batches."""
        return {**self.state.to_dict(), "loader_epoch": epoch_of(self.subject.batches)}

    def next_step(self, ranking: Mapping[str, Any]) -> ScheduledStep:
        """Decide the next step; in a distributed run the first process decides for all."""
        ranks = self.subject.context.ranks
        if not ranks.is_distributed:
            return self.own_step(ranking)
        decided: tuple[dict[str, Any], bool] = {}, False
        if ranks.is_main:
            step = self.own_step(ranking)
            decided = step.plan.to_dict(), step.last
        plan, last = ranks.broadcast(decided)
        return ScheduledStep(PruningPlan.from_dict(self.state.graph, plan), last)

    def own_step(self, ranking: Mapping[str, Any]) -> ScheduledStep:
        """Decide the next step; the last one is corrected until its measured time is within the limit."""
        graph, schedule = self.state.graph, self.planner.schedule
        step = schedule.step(graph, ranking, self.state.step)
        if self.planner.plan_in_time is None or not step.last:
            return step
        self.latency = self.planner.plan_in_time(partial(schedule.plan, graph, ranking), self.subject.model)
        for callback in self.subject.context.callbacks:
            callback.on_latency(self.latency)
        return replace(step, plan=self.latency.plan)

    def make_cut(self, plan: PruningPlan) -> None:
        """Cut the network, its optimizer and its graph."""
        subject, context, state = self.subject, self.subject.context, self.state
        recipe, model = subject.recipe, subject.model
        drop_wrappers(context.ranks)
        before = copy_with(model, {}) if recipe.reconstruct else None
        verification = cut(model, plan, subject.check_inputs, self.optimizer)
        if before is not None:
            shown = subject.first_batches(recipe.reconstruct_batches, len(state.cuts))
            reconstruct(before, model, plan, shown, LeastSquares(ridge=recipe.reconstruct_ridge))
        state.graph = state.graph.after(plan)
        done = Cut(state.step, self.planner.schedule.steps, plan, verification)
        state.cuts.append(done)
        state.scores, state.tuned = None, False
        for callback in context.callbacks:
            callback.on_cut(done)
        context.journal.put(PART, Entry(self.saved_state()))
        # With few updates after each cut, writing would take longer than training.
        if time.monotonic() - self.kept_at > _SECONDS_BETWEEN_WRITES:
            context.save("last", None)
            self.kept_at = time.monotonic()

    def tune(self) -> None:
        """Fine-tune after a cut that is not the last, and collect scores in the last epoch."""
        self.state.scores = self.tuned_scores()
        self.state.tuned = True
        journal = self.subject.context.journal
        journal.drop(FIT)
        if journal and self.optimizer is not None:
            taken = snapshot(self.subject.model, self.optimizer)
            journal.record(PART, Entry({**self.saved_state(), **taken.facts}, taken.tensors))
            journal.put(PART, Entry(self.saved_state()))

    def tuned_scores(self) -> Scores | None:
        """Fine-tune; return scores from the last epoch, if the criterion can observe training."""
        subject, training, context = self.subject, self.subject.training, self.subject.context
        settings, criterion = subject.recipe.between, subject.criterion
        if not settings.trains:
            return None
        if training.train is not None:
            self.note_fit(training.train(subject.model, settings))
            return None
        observer = None
        if criterion.needs in (Needs.FORWARD, Needs.BACKWARD) and not criterion.needs_targets:
            together = context.ranks.is_distributed
            observer = watch(subject.model, self.state.graph, criterion, across_ranks=together)
        phase = f"after cut {len(self.state.cuts)}"
        # Only networks within the budget can be the best network.
        settings = settings.model_copy(update={"keep_best": False, "patience": None})
        if settings.updates is None:
            self.fit(settings, phase, context, training.validation, observer)
        else:
            # After a few updates, neither an evaluation nor a file is worth its time.
            self.fit(settings, phase, replace(context, save=save_nothing), None, observer)
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
        subject = self.subject
        done = fit(
            subject.model,
            subject.batches,
            settings,
            FitOptions(
                validation=validation,
                metric=subject.training.metric,
                optimizer=self.optimizer,
                find_rate=subject.training.optimizer is None,
                loss_fn=subject.loss_fn,
                teacher=self.teacher,
                observe=observer,
                phase=phase,
                context=context,
            ),
        )
        self.state.fits.append(done)


def _check_batches(recipe: Recipe, training: Training, criterion: Criterion) -> None:
    """Refuse a recipe that needs batches which are missing, or which can be read only once.

    Raises:
        UsageError: batches are missing; the message names what needs them, and what to write instead.
    """
    trains = recipe.trains and training.train is None
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
    if trains or recipe.several_cuts or len(reads) > 1:
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
    if not (weight or distillation.outputs) or not recipe.trains:
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
