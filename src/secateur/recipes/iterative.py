"""Rank, cut, fine-tune, repeat (arXiv 1611.06440, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from secateur.batches import refuse_one_shot
from secateur.budget import Budget
from secateur.criteria import resolve
from secateur.graph import ChannelGraph, Cost, ExampleInputs, trace
from secateur.graph.capture import owned
from secateur.graph.cutting import copy_with
from secateur.graph.wrappers import refuse_wrapped
from secateur.optimizer_state import check_optimizer
from secateur.recipes.cutting import Cut
from secateur.recipes.latency_tuner import LatencyFit, LatencyOptions
from secateur.recipes.measured import Measured
from secateur.recipes.schedule import Route
from secateur.recipes.settings import RECIPES, PruneSettings
from secateur.recipes.work import Train, Work
from secateur.training.distillation import Teacher, need_pictures
from secateur.training.evaluate import Batches, Metric
from secateur.training.events import Progress
from secateur.training.fit import Surroundings
from secateur.training.interrupt import StoppedError
from secateur.training.losses import LossFunction
from secateur.training.optimizers import make_optimizer
from secateur.training.state import Fit


@dataclass(frozen=True)
class IterativeResult:
    """What came of pruning cut by cut.

    Attributes:
        model: the network, now smaller.
        cuts: every cut, in order, with its plan and its verification.
        fits: every phase of fine-tuning, in order; the last follows the last cut.
        graph_before: of the network as it was.
        graph: of the network as it is now.
        measured: scores and width curves of the network as it was, for another budget.
        in_time: what was measured before the last cut, where the budget limits latency.
    """

    model: nn.Module
    cuts: tuple[Cut, ...]
    fits: tuple[Fit, ...]
    graph_before: ChannelGraph
    graph: ChannelGraph
    measured: Measured | None = None
    in_time: LatencyFit | None = None

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
    timing: LatencyOptions | None = None,
    surroundings: Surroundings | None = None,
) -> IterativeResult:
    """Cuts a network down to a budget in steps, in place, with fine-tuning after each.

    Scores are collected during the last epoch of the fine-tuning before a cut, which costs no pass of
    its own. Only where there is none (before the first cut, or with no epochs between) the
    training examples are looked at once for the scores alone. The network is traced once.

    With a journal in the surroundings, what is done is kept after each epoch; a call with the same arguments,
    and the network as it was at first, then goes on from there, to the same bits.

    Args:
        model: a trained network; cut and trained in place, its parameters keep their identity.
        example_inputs: a tensor, a tuple of arguments or a dict of named ones, batch first.
        budget: what may remain.
        batches: pairs of inputs and class indices to rank and train with.
        settings: the steps; those of the recipe ``default`` if not given.
        calibration: what is scored, measured and repaired on where nothing is trained: training
            examples without augmentation; ``batches`` if not given.
        validation: judged after each epoch; the best network after the last cut is kept.
        loss_fn: mean loss of a batch of outputs against targets; cross-entropy if not given. With another
            one ``distill`` has no effect, since outputs may be no class scores.
        metric: judges the network after each epoch, larger being better, instead of its accuracy on
            ``validation``: for tasks other than classification.
        train: called with the network and the settings of the phase after each cut, instead of the
            training loop that comes with Secateur. Scores are then collected in a pass of their own.
        optimizer: over parameters of the network, or some of them. Used throughout, its state cut alike; made
            from the settings if not given.
        ignore: modules whose channels all stay.
        only: groups or modules to cut, by name or pattern, if not all.
        check_inputs: what each cut is verified on; the example inputs if not given.
        measured: scores and curves of this network that an earlier call measured; what is there is not
            measured again.
        timing: how latency is measured, where the budget limits it or widths are those that run well.
        surroundings: where to compute and whom to tell; ``keep`` hears ``"best"`` only after the last cut.

    Returns:
        The network, every cut with its verification, and every phase of fine-tuning.

    Raises:
        TraceError: the network cannot be captured.
        BudgetError: the budget cannot be met; nothing was cut.
        UsageError: ``measured`` belongs to another network, the optimizer holds no parameter of this one, or
            mirror images are asked for of what is no picture.
        VerificationError: a cut is wrong, or could not be checked; the network is as it was before that cut.
        TrainingError: the loss is not finite.
        StoppedError: the user asked to stop.

    Example:
        >>> import torch
        >>> from secateur.recipes.settings import recipe
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(16, 4), torch.randint(0, 2, (16,)))]
        >>> steps = recipe(steps=2, epochs_between=1, epochs_after=1)
        >>> result = prune_iteratively(net, batches[0][0], Budget(macs=0.5), batches, steps)
        >>> [cut.verification.ok for cut in result.cuts], result.cost_after.macs
        ([True, True], 24)
    """
    refuse_wrapped(model)
    refuse_one_shot(batches)
    refuse_one_shot(calibration, "calibration")
    refuse_one_shot(validation, "validation")
    settings = settings or RECIPES["default"]
    around = surroundings or Surroundings()
    check_optimizer(optimizer, model)
    device = around.machine.device
    model.to(device)
    example_inputs = owned(example_inputs, device)
    teacher = _teacher(model, example_inputs, settings, loss_fn)
    if measured is not None:
        measured.check(model, resolve(settings.criterion).name)
    around.listener(Progress("tracing", 0, 1))
    graph = trace(model, example_inputs, ignore=ignore)
    around.listener(Progress("tracing", 1, 1))
    pace = None
    if budget.latency is not None or settings.round_to == "auto":
        pace = (timing or LatencyOptions()).tuner(
            model, graph, example_inputs, around.listener, around.interruption
        )
    work = Work(
        model=model,
        graph=graph,
        route=Route.to(budget, graph, settings, tuple(only), pace.table if pace else None),
        pace=pace,
        budget=budget,
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
        teacher=teacher,
        check_inputs=example_inputs if check_inputs is None else owned(check_inputs, device),
    )
    try:
        work.take_up()
        work.cut_to_budget()
        if optimizer is None and settings.after.optimizer != settings.between.optimizer:
            work.optimizer = make_optimizer(model, settings.after.optimizer)
        work.recover()
    except StoppedError:
        around.keep("last", None)
        around.journal.flush()
        raise
    return IterativeResult(
        model, tuple(work.cuts), tuple(work.fits), graph, work.graph, work.measured, work.in_time
    )


def _teacher(
    model: nn.Module, example_inputs: ExampleInputs, settings: PruneSettings, loss_fn: LossFunction | None
) -> Teacher | None:
    """The network as it is before the first cut, if it is to be learnt from: its answers are class scores."""
    if not settings.distill or not (
        loss_fn in (None, nn.functional.cross_entropy) or isinstance(loss_fn, nn.CrossEntropyLoss)
    ):
        return None
    if settings.mirror:
        need_pictures(example_inputs)
    return Teacher(copy_with(model, {}), settings.distill, settings.temperature, settings.mirror)
