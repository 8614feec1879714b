"""Measure the channels of a network: their scores, the width curves of groups, and the damage of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from secateur.batches import LossFunction
from secateur.budget import WidthCurves
from secateur.criteria import Criterion, GateCriterion, Needs, Scores, score
from secateur.data.loader import at_epoch
from secateur.graph import ChannelGraph, ExampleInputs
from secateur.graph.capture.program import copied_inputs
from secateur.plan import PruningPlan
from secateur.ranks import RankBatch, rank_batch, split_across_ranks
from secateur.recipes.callbacks import Callback
from secateur.recipes.context import RecipeContext, Training
from secateur.recipes.recipe import Recipe
from secateur.recovery import CurveOptions, LeastSquares, masked_damage, width_curves
from secateur.training.evaluate import Batches
from secateur.training.events import report_progress, tracked
from secateur.training.losses import is_cross_entropy, next_token_loss, with_auxiliaries


@dataclass(frozen=True)
class Subject:
    """The network that a recipe prunes, and what it is measured and trained with; created by :meth:`of`.

    Attributes:
        model: cut and trained in place; all else stays as it is.
        recipe: the settings.
        training: the user's tools; ``batches``, ``calibration`` and ``check_inputs`` below replace its own.
        context: device, callbacks and journal.
        criterion: scores channels.
        loss_fn: the loss, if not cross-entropy.
        batches: to train on; none if there are none.
        calibration: to score, measure and reconstruct on.
        check_inputs: for the verification of each cut.
    """

    model: nn.Module
    recipe: Recipe
    training: Training
    context: RecipeContext
    criterion: Criterion
    loss_fn: LossFunction | None
    batches: Batches
    calibration: Batches
    check_inputs: ExampleInputs

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: ExampleInputs,
        recipe: Recipe,
        training: Training,
        context: RecipeContext,
        criterion: Criterion,
        loss_fn: LossFunction | None,
    ) -> Subject:
        """Collect what a run uses, with the defaults of :class:`Training` filled in.

        Args:
            model: a network on the device of the context.
            example_inputs: on the same device; without any data, damage is measured on them.
            recipe: the settings.
            training: what the user gave.
            context: device, callbacks and journal.
            criterion: scores channels.
            loss_fn: the loss, if not cross-entropy.
        """
        checked = training.check_inputs
        checked = example_inputs if checked is None else copied_inputs(checked, context.device)
        batches = () if training.batches is None else training.batches
        calibration = [(checked, None)] if training.batches is None else batches
        if training.calibration is not None:
            calibration = training.calibration
        return cls(model, recipe, training, context, criterion, loss_fn, batches, calibration, checked)

    def first_batches(self, count: int, cuts: int) -> Iterator[Any]:
        """Return the first calibration batches of a pass, for reconstruction or for width curves.

        Args:
            count: their number.
            cuts: number of cuts so far, on which alone the order depends, not on what was read before a kill.
        """
        with at_epoch(self.calibration, cuts):
            yield from islice(iter(self.calibration), count)


@dataclass(frozen=True)
class Measurements:
    """Scores of a network, and its width curves if they are measured."""

    scores: Scores
    curves: WidthCurves | None = None

    def ranking(self, recipe: Recipe) -> Mapping[str, Any]:
        """Return what a plan of a recipe is made from: width curves or scores."""
        return self.curves if recipe.allocation == "curves" and self.curves is not None else self.scores

    def report(self, callbacks: Sequence[Callback]) -> None:
        """Report scores and curves that were measured before callbacks were to know."""
        for callback in callbacks:
            callback.on_scores(self.scores)
            if self.curves is not None:
                callback.on_curves(self.curves)


def measure(
    subject: Subject,
    graph: ChannelGraph,
    cuts: int = 0,
    *,
    scores: Scores | None = None,
    curves: WidthCurves | None = None,
    receivers: Sequence[Callback] = (),
) -> Measurements:
    """Measure the scores of a network, and its width curves if the recipe uses them.

    Args:
        subject: the network and the recipe.
        graph: of the network as it is now.
        cuts: number of cuts so far.
        scores: of these channels, if they are known.
        curves: of these groups that are known, and are not measured again.
        receivers: callbacks that receive scores and curves, if they are measured here; all callbacks of
            the context receive progress.

    Raises:
        StoppedError: the user stopped it.
    """
    recipe, context = subject.recipe, subject.context
    if scores is None:
        scores = score_channels(subject, graph, cuts)
        for callback in receivers:
            callback.on_scores(scores)
    if recipe.allocation != "curves":
        return Measurements(scores, curves)
    known = curves.measured if curves else 0

    def progress(found: WidthCurves, total: int) -> None:
        report_progress(context.callbacks, "measuring widths", found.measured, total)
        if found.measured > known:
            for callback in receivers:
                callback.on_curves(found)
        context.interruption.check()

    depth = recipe.widths.depth
    found = width_curves(
        subject.model,
        graph,
        {} if depth == "only" else scores,
        subject.first_batches(recipe.curve_batches, cuts),
        CurveOptions(fit=LeastSquares(ridge=recipe.reconstruct_ridge), branches=depth != "off"),
        resume=curves,
        progress=progress,
        across_ranks=context.ranks.is_distributed,
    )
    return Measurements(scores, found)


def score_channels(subject: Subject, graph: ChannelGraph, cuts: int) -> Scores:
    """Score the channels in a separate pass over the calibration examples.

    Args:
        subject: the network and the criterion.
        graph: of the network as it is now.
        cuts: number of cuts so far.
    """
    model, criterion, loss_fn = subject.model, subject.criterion, subject.loss_fn
    if criterion.needs is Needs.NOTHING:
        return score(model, graph, criterion)
    # Of these criteria, the scores do not depend on which examples are in a batch.
    alone = loss_fn is next_token_loss and isinstance(criterion, GateCriterion)
    if is_cross_entropy(loss_fn) or (subject.recipe.trains and subject.training.train is None):
        loss_fn = with_auxiliaries(loss_fn or cross_entropy, own=loss_fn is None)  # as in training
    batches = ScoringBatches(subject.calibration, subject.recipe.scoring_batches, subject.context, alone)
    together = subject.context.ranks.is_distributed
    with at_epoch(subject.calibration, cuts):
        return score(model, graph, criterion, batches, loss_fn, across_ranks=together)


def measure_damage(subject: Subject, graph: ChannelGraph, plan: PruningPlan) -> float:
    """Measure how a plan for the whole network changes its outputs, with nothing refitted.

    Args:
        subject: the network and its data; without any, the inputs for the check are used.
        graph: of the network.
        plan: what is removed.
    """
    with at_epoch(subject.calibration, 0):
        return masked_damage(subject.model, graph, plan, subject.calibration)


@dataclass(frozen=True)
class ScoringBatches:
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
