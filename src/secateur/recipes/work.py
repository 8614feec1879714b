"""The work of the iterative recipe: score, cut, fine-tune, and how far that has come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from secateur.budget import Budget
from secateur.criteria import Needs, Scores, Watch, resolve, score, watch
from secateur.graph import ChannelGraph, ExampleInputs
from secateur.graph.cutting import copy_with
from secateur.plan import PruningPlan
from secateur.ranks import Share, shares
from secateur.recipes.cutting import Cut, cut
from secateur.recipes.latency_tuner import LatencyFit, LatencyTuner
from secateur.recipes.measured import Measured, fingerprint
from secateur.recipes.progress import PART, Resumed, Standing, replay
from secateur.recipes.ranking import measured_curves
from secateur.recipes.schedule import Route, Step
from secateur.recipes.settings import PruneSettings
from secateur.recovery import reconstruct
from secateur.training.distillation import Teacher
from secateur.training.evaluate import Batches, Metric
from secateur.training.events import tracked
from secateur.training.fit import FIT, Surroundings, fit, keep_nothing
from secateur.training.joint import drop_wrappers
from secateur.training.journal import Entry
from secateur.training.losses import LossFunction, with_auxiliaries
from secateur.training.settings import FitSettings
from secateur.training.snapshot import restore, snapshot
from secateur.training.state import Fit, at_pass, passes, set_passes

_SECONDS_BETWEEN_WRITES = 30.0

Train = Callable[[nn.Module, FitSettings], object]
"""A training loop of one's own: trains a network in place for one phase."""


@dataclass(frozen=True)
class _Looked:
    """Batches of which each process looks at its part, with progress told.

    Attributes:
        batches: the whole ones.
        limit: how many of them; all if not given.
        around: the processes, and whom to tell.
    """

    batches: Batches
    limit: int | None
    around: Surroundings

    def __iter__(self) -> Iterator[Any]:
        return (share.batch for share in self.shares(0, 1))

    def shares(self, index: int, count: int) -> Iterator[Share]:
        """Of each batch the part of this process; as :class:`secateur.ranks.Shareable` has it."""
        total = len(self.batches) if isinstance(self.batches, Sized) else None
        if self.limit is not None and total is not None:
            total = min(self.limit, total)
        around = self.around
        parts = islice(shares(self.batches, around.machine.ranks), self.limit)
        yield from tracked(parts, "scoring", around.listener, around.interruption, total)


@dataclass
class Work:
    """One call of :func:`secateur.prune_iteratively`, taken apart.

    Attributes are its arguments, completed, and below them how far it has come.
    """

    model: nn.Module
    graph: ChannelGraph
    route: Route
    batches: Batches
    calibration: Batches
    validation: Batches | None
    settings: PruneSettings
    loss_fn: LossFunction | None
    metric: Metric | None
    train: Train | None
    measured: Measured | None
    optimizer: Optimizer
    around: Surroundings
    teacher: Teacher | None
    check_inputs: ExampleInputs
    pace: LatencyTuner | None = None
    budget: Budget | None = None
    cuts: list[Cut] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    number: int = 0
    last: bool = False
    tuned: bool = True
    scores: Scores | None = None
    kept_at: float = -math.inf
    in_time: LatencyFit | None = None

    def __post_init__(self) -> None:
        # A share of the time is a share of the whole network's, which has to run beside the smaller one.
        limits_time = self.budget is not None and self.budget.latency is not None
        self.whole = copy_with(self.model, {}) if limits_time else None

    def take_up(self) -> None:
        """Goes on where an earlier call was when it was killed, if there was one."""
        entry = self.around.journal.recall(PART)
        if entry is None:
            return
        then, self.graph = replay(entry.facts, self.model, self.graph)
        self.cuts, self.fits = list(then.cuts), list(then.fits)
        self.number, self.last, self.tuned, self.scores = then.step, then.last, then.tuned, then.scores
        if entry.tensors:  # else what follows the last cut goes on by itself
            restore(entry, self.model, self.optimizer)
        set_passes(self.batches, then.passes)
        self.around.listener(Resumed(tuple(then.cuts)))
        self.around.journal.put(PART, Entry(entry.facts))
        if not self.tuned and not self.last:
            self.tune()

    def standing(self) -> dict[str, Any]:
        """How far this has come, as plain values."""
        return Standing(
            *(self.cuts, self.fits, self.number, self.last, self.tuned, self.scores),
            passes=passes(self.batches),
        ).facts()

    def cut_to_budget(self) -> None:
        """All cuts, and the fine-tuning between them."""
        while not self.last:
            self.number += 1
            if not self.cuts:
                ranking = self.first_ranking()
            else:
                ranking = self.ranking(self.score() if self.scores is None else self.scores)
            step = self.next_step(ranking)
            self.last = step.last
            if step.plan.channels_removed:  # else this step was reached before, and the scores still hold
                self.make_cut(step.plan)
                if not self.last:
                    self.tune()

    def next_step(self, ranking: Mapping[str, Any]) -> Step:
        """The next step: the first process decides, and tells the others."""
        ranks = self.around.machine.ranks
        if not ranks.together:
            return self.own_step(ranking)
        told: dict[str, Any] = {}
        if ranks.first:
            step = self.own_step(ranking)
            told = {"keep": {name: list(kept) for name, kept in step.plan.keep.items()}, "last": step.last}
        told = ranks.same(told)
        keep = {name: tuple(kept) for name, kept in told["keep"].items()}
        return Step(PruningPlan(self.graph, keep), told["last"])

    def own_step(self, ranking: Mapping[str, Any]) -> Step:
        """The next step as this process sees it."""
        return self.in_time_at_last(self.route.step(self.graph, ranking, self.number), ranking)

    def in_time_at_last(self, step: Step, ranking: Mapping[str, Any]) -> Step:
        """The last step, corrected until the clock agrees, where the budget limits latency."""
        if not step.last or self.pace is None or self.budget is None or self.budget.latency is None:
            return step

        def plan_for(limits: Mapping[str, int]) -> PruningPlan:
            return self.route.plan(self.graph, ranking, limits)

        self.in_time = self.pace.plan(self.budget.latency, self.route.goal, plan_for, self.model, self.whole)
        self.around.listener(self.in_time)
        return replace(step, plan=self.in_time.plan)

    def first_ranking(self) -> Mapping[str, Any]:
        """The ranking of the network as it is; what is known of it already is not measured again."""
        if self.measured is None:
            self.tell(Measured(fingerprint(self.model), self.score()))
        assert self.measured is not None
        return self.ranking(self.measured.scores)

    def tell(self, measured: Measured) -> None:
        """Keeps what was measured on the whole network, and lets it be known."""
        self.measured = measured
        self.around.listener(measured)

    def ranking(self, scores: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """What the plan goes by: the scores, or the width curves of groups that shrink in their order."""
        if self.settings.allocate != "curves":
            return scores
        whole = self.measured if not self.cuts else None
        return measured_curves(
            self.model,
            self.graph,
            scores,
            self.some_batches(self.settings.curve_batches),
            self.around.listener,
            self.around.interruption,
            resume=whole.curves if whole else None,
            tell=(lambda curves: self.tell(replace(whole, curves=curves))) if whole else None,
            across_ranks=self.around.machine.ranks.together,
        )

    def some_batches(self, count: int) -> Iterator[Any]:
        """The first batches of a pass, to repair with or to measure widths on."""
        with self.look():
            yield from islice(iter(self.calibration), count)

    def look(self) -> AbstractContextManager[None]:
        """Lets a block read the calibration examples without an effect on the passes of the training."""
        # Which pass it is depends on the cut alone, and not on what was read before a kill.
        return at_pass(self.calibration, len(self.cuts))

    def make_cut(self, plan: PruningPlan) -> None:
        """One cut: of the network, its optimizer and its graph."""
        drop_wrappers(self.around.machine.ranks)
        before = copy_with(self.model, {}) if self.settings.repair else None
        _, verification = cut(self.model, plan, self.check_inputs, self.optimizer)
        if before is not None:
            reconstruct(before, self.model, plan, self.some_batches(self.settings.repair_batches))
        self.graph = self.graph.after(plan)
        done = Cut(self.number, self.route.steps, plan, verification)
        self.cuts.append(done)
        self.scores, self.tuned = None, False
        self.around.listener(done)
        self.around.journal.put(PART, Entry(self.standing()))
        # With few updates after each cut, writing would take longer than training.
        if time.monotonic() - self.kept_at > _SECONDS_BETWEEN_WRITES:
            self.around.keep("last", None)
            self.kept_at = time.monotonic()

    def score(self) -> Scores:
        """Scores from a look at the training examples that does nothing else."""
        criterion = resolve(self.settings.criterion)
        loss_fn = with_auxiliaries(self.loss_fn or cross_entropy)
        if criterion.needs is Needs.NOTHING:
            return score(self.model, self.graph, criterion)
        batches = _Looked(self.calibration, self.settings.scoring_batches, self.around)
        together = self.around.machine.ranks.together
        with self.look():
            return score(self.model, self.graph, criterion, batches, loss_fn, across_ranks=together)

    def tune(self) -> None:
        """Fine-tunes after a cut that is not the last, and collects scores on the way."""
        self.scores = self.tuned_scores()
        self.tuned = True
        journal = self.around.journal
        journal.drop(FIT)
        if journal:
            taken = snapshot(self.model, self.optimizer)
            journal.record(PART, Entry({**self.standing(), **taken.facts}, taken.tensors))
            journal.put(PART, Entry(self.standing()))

    def tuned_scores(self) -> Scores | None:
        """Fine-tunes; scores from its last epoch, if the criterion can watch training."""
        settings = self.settings.between
        if settings.epochs == 0 and settings.updates is None:
            return None
        if self.train is not None:
            self.train(self.model, settings)
            return None
        criterion = resolve(self.settings.criterion)
        can_watch = criterion.needs in (Needs.FORWARD, Needs.BACKWARD) and not criterion.needs_targets
        together = self.around.machine.ranks.together
        observer = watch(self.model, self.graph, criterion, across_ranks=together) if can_watch else None
        phase = f"after cut {len(self.cuts)}"
        # The best network is looked for only among those within the budget.
        settings = settings.model_copy(update={"keep_best": False, "patience": None})
        if settings.updates is None:
            self._fit(settings, phase, self.around, self.validation, observer)
        else:
            # A few updates are worth neither a look at the validation examples nor a file.
            self._fit(settings, phase, replace(self.around, keep=keep_nothing), None, observer)
        return observer.scores() if observer else None

    def recover(self) -> None:
        """Fine-tunes the network that meets the budget."""
        if self.train is not None:
            self.train(self.model, self.settings.after)
            return
        self._fit(self.settings.after, "after the last cut", self.around, self.validation)

    def _fit(
        self,
        settings: FitSettings,
        phase: str,
        around: Surroundings,
        validation: Batches | None,
        observer: Watch | None = None,
    ) -> None:
        done = fit(
            self.model,
            self.batches,
            settings,
            validation=validation,
            metric=self.metric,
            optimizer=self.optimizer,
            loss_fn=self.loss_fn,
            teacher=self.teacher,
            observe=observer,
            phase=phase,
            surroundings=around,
        )
        self.fits.append(done)
