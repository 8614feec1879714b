"""Rank, cut, fine-tune, repeat (arXiv 1611.06440, section 2)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from secateur.budget import Budget
from secateur.criteria import Needs, Scores, Watch, resolve, score, watch
from secateur.graph import ChannelGraph, Cost, ExampleInputs, trace
from secateur.graph.capture import owned
from secateur.plan import PruningPlan
from secateur.recipes.cutting import Cut, cut
from secateur.recipes.measured import Measured, fingerprint
from secateur.recipes.ranking import measured_curves
from secateur.recipes.settings import PruneSettings
from secateur.recipes.steps import Route
from secateur.recovery import reconstruct
from secateur.training.distillation import Teacher
from secateur.training.evaluate import Batches, Metric
from secateur.training.events import Progress, tracked
from secateur.training.fit import Fit, Surroundings, fit, keep_nothing
from secateur.training.interrupt import StoppedError
from secateur.training.losses import LossFunction, with_auxiliaries
from secateur.training.optimizers import make_optimizer
from secateur.training.settings import FitSettings

_SECONDS_BETWEEN_WRITES = 30.0

Train = Callable[[nn.Module, FitSettings], object]
"""A training loop of one's own: trains a network in place for one phase."""


@dataclass(frozen=True)
class IterativeResult:
    """What came of pruning cut by cut.

    Attributes:
        model: the network, now smaller.
        cuts: every cut, in order, with its plan and its proof.
        fits: every phase of fine-tuning, in order; the last follows the last cut.
        graph_before: of the network as it was.
        graph: of the network as it is now.
        measured: scores and width curves of the network as it was, for another budget.
    """

    model: nn.Module
    cuts: tuple[Cut, ...]
    fits: tuple[Fit, ...]
    graph_before: ChannelGraph
    graph: ChannelGraph
    measured: Measured | None = None

    @property
    def cost_before(self) -> Cost:
        """What the network needed as it was."""
        return self.graph_before.cost()

    @property
    def cost_after(self) -> Cost:
        """What the network needs as it is now."""
        return self.graph.cost()


def prune_iteratively(
    model: nn.Module,
    example_inputs: ExampleInputs,
    budget: Budget,
    batches: Batches,
    settings: PruneSettings | None = None,
    *,
    calibration: Batches | None = None,
    validation: Batches | None = None,
    loss_fn: LossFunction | None = None,
    metric: Metric | None = None,
    train: Train | None = None,
    optimizer: Optimizer | None = None,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    check_inputs: ExampleInputs | None = None,
    measured: Measured | None = None,
    surroundings: Surroundings | None = None,
) -> IterativeResult:
    """Cuts a network down to a budget in steps, in place, with fine-tuning after each.

    Scores are collected during the last epoch of the fine-tuning before a cut, which costs no pass of
    its own. Only where there is none (before the first cut, or with no epochs between) the
    training examples are looked at once for the scores alone. The network is traced once.

    Args:
        model: a trained network; cut and trained in place, its parameters keep their identity.
        example_inputs: a tensor, a tuple of arguments or a dict of named ones, batch first.
        budget: what may remain.
        batches: pairs of inputs and class indices to rank and train with.
        settings: the steps; those of the recipe ``default`` if not given.
        calibration: what is scored, measured and repaired on where nothing is trained: training
            examples without augmentation; ``batches`` if not given.
        validation: judged after each epoch; the best network after the last cut is kept.
        loss_fn: mean loss of a batch of outputs against targets; cross-entropy if not given.
        metric: judges the network after each epoch, larger being better, instead of its accuracy on
            ``validation``: for tasks other than classification.
        train: called with the network and the settings of the phase after each cut, instead of the
            training loop that comes with Secateur. Scores are then collected in a pass of their own.
        optimizer: used throughout, its state cut alike; made from the settings if not given.
        ignore: modules whose channels all stay.
        only: groups or modules to cut, by name or pattern, if not all.
        check_inputs: what each cut is proved on; the example inputs if not given.
        measured: scores and curves of this network that an earlier call measured; what is there is not
            measured again.
        surroundings: where to compute and whom to tell; ``keep`` hears ``"best"`` only after the last cut.

    Returns:
        The network, every cut with its proof, and every phase of fine-tuning.

    Raises:
        TraceError: the network cannot be captured.
        BudgetError: the budget cannot be met; nothing was cut.
        UsageError: ``measured`` belongs to another network.
        VerificationError: a cut could not be proved; the network is left as it was before that cut.
        TrainingError: the loss is not finite.
        StoppedError: the user asked to stop.
    """
    settings = settings or PruneSettings()
    around = surroundings or Surroundings()
    device = around.machine.device
    model.to(device)
    example_inputs = owned(example_inputs, device)
    if measured is not None:
        measured.check(model, resolve(settings.criterion).name)
    around.listener(Progress("tracing", 0, 1))
    graph = trace(model, example_inputs, ignore=ignore)
    around.listener(Progress("tracing", 1, 1))
    work = _Work(
        model=model,
        graph=graph,
        route=Route.to(budget, graph, settings, tuple(only)),
        batches=batches,
        calibration=batches if calibration is None else calibration,
        validation=validation,
        settings=settings,
        loss_fn=loss_fn,
        metric=metric,
        train=train,
        measured=measured,
        optimizer=optimizer or make_optimizer(model, settings.between.optimizer),
        around=around,
        teacher=_teacher(model, settings),
        check_inputs=example_inputs if check_inputs is None else owned(check_inputs, device),
    )
    try:
        work.cut_to_budget()
        if optimizer is None and settings.after.optimizer != settings.between.optimizer:
            work.optimizer = make_optimizer(model, settings.after.optimizer)
        work.recover()
    except StoppedError:
        around.keep("last", None)
        raise
    return IterativeResult(model, tuple(work.cuts), tuple(work.fits), graph, work.graph, work.measured)


@dataclass
class _Work:
    """The state of one call: what a resumed run would need besides network and optimizer."""

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
    cuts: list[Cut] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    kept_at: float = -math.inf

    def cut_to_budget(self) -> None:
        """All cuts, and the fine-tuning between them."""
        scores: Mapping[str, Tensor] | None = None
        number, last = 0, False
        while not last:
            number += 1
            if not self.cuts:
                ranking = self.first_ranking()
            else:
                ranking = self.ranking(self.score() if scores is None else scores)
            step = self.route.step(self.graph, ranking, number)
            last = step.last
            if step.plan.channels_removed:  # else this step was reached before, and the scores still hold
                self.make_cut(step.plan, number)
                scores = None if last else self.tune()

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
        )

    def some_batches(self, count: int) -> Iterator[Any]:
        """The first batches of a pass, to repair with or to measure widths on."""
        return islice(iter(self.calibration), count)

    def make_cut(self, plan: PruningPlan, number: int) -> None:
        """One cut: of the network, its optimizer and its graph."""
        before = copy.deepcopy(self.model) if self.settings.repair else None
        verification = cut(self.model, plan, self.check_inputs, self.optimizer)
        if before is not None:
            reconstruct(before, self.model, plan, self.some_batches(self.settings.repair_batches))
        self.graph = self.graph.after(plan)
        done = Cut(number, self.route.steps, plan, verification)
        self.cuts.append(done)
        self.around.listener(done)
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
        limit = self.settings.scoring_batches
        total = len(self.calibration) if isinstance(self.calibration, Sized) else None
        if limit is not None and total is not None:
            total = min(limit, total)
        batches = tracked(
            islice(self.calibration, limit), "scoring", self.around.listener, self.around.interruption, total
        )
        return score(self.model, self.graph, criterion, batches, loss_fn)

    def tune(self) -> Mapping[str, Tensor] | None:
        """Fine-tunes after a cut; scores from its last epoch, if the criterion can watch training."""
        settings = self.settings.between
        if settings.epochs == 0 and settings.updates is None:
            return None
        if self.train is not None:
            self.train(self.model, settings)
            return None
        criterion = resolve(self.settings.criterion)
        can_watch = criterion.needs in (Needs.FORWARD, Needs.BACKWARD) and not criterion.needs_targets
        observer = watch(self.model, self.graph, criterion) if can_watch else None
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


def _teacher(model: nn.Module, settings: PruneSettings) -> Teacher | None:
    """The network as it is before the first cut, if it is to be learnt from."""
    if not settings.distill:
        return None
    return Teacher(copy.deepcopy(model), settings.distill, settings.temperature)
