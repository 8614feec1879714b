"""Rank, cut, fine-tune, repeat (arXiv 1611.06440, section 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from secateur.budget import Budget
from secateur.criteria import Needs, Scores, resolve, score, watch
from secateur.graph import ChannelGraph, Cost, trace
from secateur.recipes.cutting import Cut, cut
from secateur.recipes.settings import PruneSettings
from secateur.recipes.steps import Route
from secateur.training.evaluate import Batches, Evaluation
from secateur.training.events import tracked
from secateur.training.fit import Fit, Surroundings, fit
from secateur.training.losses import LossFunction, with_auxiliaries
from secateur.training.optimizers import make_optimizer
from secateur.training.settings import FitSettings


@dataclass(frozen=True)
class IterativeResult:
    """What came of pruning cut by cut.

    Attributes:
        model: the network, now smaller.
        cuts: every cut, in order, with its plan and its proof.
        fits: every phase of fine-tuning, in order; the last follows the last cut.
        graph: of the network as it is now.
        cost_before: of the network as it was.
        cost_after: of the network as it is now.
    """

    model: nn.Module
    cuts: tuple[Cut, ...]
    fits: tuple[Fit, ...]
    graph: ChannelGraph
    cost_before: Cost
    cost_after: Cost


def prune_iteratively(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    batches: Batches,
    settings: PruneSettings | None = None,
    *,
    validation: Batches | None = None,
    loss_fn: LossFunction | None = None,
    optimizer: Optimizer | None = None,
    ignore: Sequence[str] = (),
    check_inputs: Any = None,
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
        validation: judged after each epoch; the best network after the last cut is kept.
        loss_fn: mean loss of a batch; cross-entropy if not given.
        optimizer: used throughout, its state cut alike; made from the settings if not given.
        ignore: modules whose channels all stay.
        check_inputs: what each cut is proved on; the example inputs if not given.
        surroundings: where to compute and whom to tell; ``keep`` hears ``"best"`` only after the last cut.

    Returns:
        The network, every cut with its proof, and every phase of fine-tuning.

    Raises:
        TraceError: the network cannot be captured.
        BudgetError: the budget cannot be met; nothing was cut.
        VerificationError: a cut could not be proved; the network is left as it was before that cut.
        TrainingError: the loss is not finite.
        StoppedError: the user asked to stop.
    """
    settings = settings or PruneSettings()
    around = surroundings or Surroundings()
    model.to(around.machine.device)
    graph = trace(model, example_inputs, ignore=ignore)
    work = _Work(
        model=model,
        graph=graph,
        route=Route.plan(graph, budget, settings),
        batches=batches,
        validation=validation,
        settings=settings,
        loss_fn=loss_fn,
        optimizer=optimizer or make_optimizer(model, settings.between.optimizer),
        around=around,
        check_inputs=example_inputs if check_inputs is None else check_inputs,
    )
    cost_before = graph.cost()
    work.cut_to_budget()
    if optimizer is None and settings.after.optimizer != settings.between.optimizer:
        work.optimizer = make_optimizer(model, settings.after.optimizer)
    work.recover(settings.after)
    return IterativeResult(
        model, tuple(work.cuts), tuple(work.fits), work.graph, cost_before, work.graph.cost()
    )


@dataclass
class _Work:
    """The state of one call: what a resumed run would need besides network and optimizer."""

    model: nn.Module
    graph: ChannelGraph
    route: Route
    batches: Batches
    validation: Batches | None
    settings: PruneSettings
    loss_fn: LossFunction | None
    optimizer: Optimizer
    around: Surroundings
    check_inputs: Any
    cuts: list[Cut] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)

    def cut_to_budget(self) -> None:
        """All cuts, and the fine-tuning between them."""
        scores: Scores | None = None
        number = 0
        last = False
        while not last:
            number += 1
            step = self.route.step(self.graph, scores or self.score(), number)
            last = step.last
            if not step.plan.channels_removed:
                continue  # the budget of this step was met already; its scores still hold
            self.make(step.plan, number)
            scores = None if last else self.tune_and_watch(self.settings.between)

    def make(self, plan: Any, number: int) -> None:
        """One cut, on the network, the graph and the optimizer."""
        verification = cut(self.model, plan, self.check_inputs, self.optimizer)
        self.graph = self.graph.after(plan)
        done = Cut(number, self.route.steps, plan, verification)
        self.cuts.append(done)
        self.around.keep("last", None)
        self.around.listener(done)

    def score(self) -> Scores:
        """Scores from a pass over the training examples that does nothing else."""
        loss_fn = with_auxiliaries(self.loss_fn or cross_entropy)
        batches = None if self.criterion_needs is Needs.NOTHING else list_batches(self)
        return score(self.model, self.graph, self.settings.criterion, batches, loss_fn)
