"""Train a network: the training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from secateur.batches import LossFunction, refuse_one_shot
from secateur.criteria import ScoreCollector
from secateur.data.loader import epoch_of, set_epoch
from secateur.errors import DataError, StoppedError, TrainingError
from secateur.formats import duration
from secateur.ranks import RankBatch, split_across_ranks
from secateur.training.context import RunContext
from secateur.training.distillation import Teacher
from secateur.training.ema import WeightAverage
from secateur.training.evaluate import Batches, Evaluation, Metric, validate
from secateur.training.events import EpochDone, report_epoch, report_note, report_progress
from secateur.training.losses import with_auxiliaries
from secateur.training.metrics import TOP_1
from secateur.training.optimizers import (
    largest_rate,
    learning_rate_factors,
    make_optimizer,
    scaled_learning_rates,
)
from secateur.training.peak_rate import PeakRate, find_peak_rate
from secateur.training.process_group import mean_loss, set_weight, share_buffers, synchronized_batch_norm
from secateur.training.resume import Entry, prefixed, restore, snapshot, under
from secateur.training.selection import is_preferred
from secateur.training.settings import FitSettings
from secateur.training.step import NotFiniteError, TrainingLoss, take_step

FIT = "fit"
"""Name of this part of a journal."""

_TRIALS = "trying learning rates"
_KEPT, _START, _AVERAGE = "kept.", "start.", "average."
_BACKWARD = 3.0  # a training step takes about as long as so many forward passes


@dataclass(frozen=True)
class FitOptions:
    """Hold what :func:`fit` may be given besides network, batches and settings.

    Attributes:
        validation: evaluated after each epoch.
        metric: called with the network after each epoch instead; larger is better.
        optimizer: used, with its learning rate, and its state kept, instead of a new one.
        find_rate: find a learning rate for ``optimizer`` too, if the settings do not give one.
        loss_fn: mean loss of a batch; cross-entropy with the settings' label smoothing if not given, and the
            loss that the network returns for batches that are mappings. For these it is called with all that
            the network returns, and with the batch. With ``next_token_loss``, the network is a language
            model, and is evaluated by its perplexity.
        teacher: a network whose outputs are learnt besides the targets; its class scores not from batches
            that are mappings, whose outputs may not be class scores.
        observe: entered for the last epoch, for example to collect scores from its steps.
        phase: name of this training in events.
        context: where to compute, and what to report to. If not given, the network is trained on its device,
            in float32.
    """

    validation: Batches | None = None
    metric: Metric | None = None
    optimizer: Optimizer | None = None
    find_rate: bool = False
    loss_fn: LossFunction | None = None
    teacher: Teacher | None = None
    observe: AbstractContextManager[Any] | None = None
    phase: str = "training"
    context: RunContext | None = None


@dataclass
class FitState:
    """Hold all that changes from step to step besides network and optimizer.

    Attributes:
        epoch: number of finished epochs.
        step: number of finished optimizer steps.
        restarts: how often the training diverged and started once more: 0 or 1.
        rate: the peak learning rate.
        evaluation: of the last epoch, if there is validation data.
        start: of the network before training; epoch 0.
        highest: the best evaluation so far: of the highest accuracy, or the lowest perplexity.
        kept: of the network that is kept (:func:`secateur.training.selection.is_preferred`).
        kept_epoch: its number.
        improved_epoch: number of the last epoch that had a better metric or a lower validation loss than all
            epochs before it.
        history: all epochs so far, those before a restart included.
        kept_weights: of the network that is kept, if the settings keep one.
        start_weights: of the network before training, while the training may be started once more.
    """

    epoch: int = 0
    step: int = 0
    restarts: int = 0
    rate: PeakRate | None = None
    evaluation: Evaluation | None = None
    start: Evaluation | None = None
    highest: Evaluation | None = None
    kept: Evaluation | None = None
    kept_epoch: int = 0
    improved_epoch: int = 0
    history: list[EpochDone] = field(default_factory=list)
    kept_weights: dict[str, Tensor] | None = field(default=None, repr=False)
    start_weights: dict[str, Tensor] | None = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return everything but the weights as plain values."""
        values = {name: value for name, value in vars(self).items() if name not in _WEIGHTS}
        parts = {name: asdict(values[name]) for name in _PARTS if values[name] is not None}
        return {**values, **parts, "history": [asdict(done) for done in self.history]}

    @classmethod
    def from_entry(cls, entry: Entry) -> FitState:
        """Read a state from a journal, with the weights if they are there."""
        facts = entry.facts
        own = {item.name: facts[item.name] for item in fields(cls) if item.name not in _WEIGHTS}
        parts = {name: kind(**own[name]) for name, kind in _PARTS.items() if own[name] is not None}
        history = [EpochDone(**done) for done in own["history"]]
        weights = {name: under(prefix, entry.tensors) or None for name, prefix in _WEIGHTS.items()}
        return cls(**{**own, **parts, "history": history, **weights})


_PARTS: dict[str, type[Any]] = {
    "rate": PeakRate,
    **dict.fromkeys(("evaluation", "start", "highest", "kept"), Evaluation),
}
_WEIGHTS = {"kept_weights": _KEPT, "start_weights": _START}


def fit(
    model: nn.Module, batches: Batches, settings: FitSettings, options: FitOptions = FitOptions()
) -> FitState:
    """Train a network in place.

    The network before training is evaluated as epoch 0, and what is kept is never below it on the validation
    examples (:func:`secateur.training.selection.is_preferred`). A learning rate that is not given is found by
    short trials on copies. If the mean loss of an epoch is then above that before training, the training
    starts once more at a tenth of the rate.

    Before the first epoch, and after each, ``context.save`` is called, so that there is always a good
    checkpoint.

    With a journal in the context, the state is kept after each epoch but the last. A call with the same
    arguments then continues from there. It ends at the same bits, if the batches are the same in each pass or
    come from a :class:`secateur.data.Loader`.

    Args:
        model: returns class scores, or a tuple with auxiliary scores behind them in training mode.
        batches: pairs of inputs and class indices, or mappings of named arguments with the labels among
            them; one pass is an epoch. Several processes are given the same batches; each takes a part of
            every one.
        settings: epochs, schedule, and the optimizer if none is given.
        options: validation data, loss, optimizer, teacher, and where to compute.

    Returns:
        The history. The network is as after the epoch that is kept if ``settings.keep_best`` and it was
        evaluated, else as after the last.

    Raises:
        TrainingError: the loss or the gradient is not finite; the step is not taken.
        DataError: there are no batches.
        UsageError: batches or validation can be iterated only once.
        StoppedError: the user asked to stop; the step was finished and the state kept.
    """
    refuse_one_shot(batches)
    refuse_one_shot(options.validation, "validation")
    context = options.context or RunContext.of(model)
    # Laid out before Fabric wraps the network: DistributedDataParallel keeps gradients as weights lie then.
    with _network_ready(model, options.teacher, context.uses_channels_last(model)):
        setup = _prepare(model, batches, settings, options, context)
        resumed = _resume(setup)
        context.save("last", None)
        state = resumed or _begin(setup)
        with scaled_learning_rates(setup.optimizer) as scale_rates:
            try:
                while not _run_epochs(setup, state, scale_rates):
                    _start_again(setup, state)
            except StoppedError:
                context.save("last", None)
                context.journal.flush()
                raise
    if state.kept_weights is not None:
        model.load_state_dict(state.kept_weights)
        report_note(context.callbacks, f"{options.phase}: {_outcome(state)}")
    return state


@dataclass(frozen=True)
class _Setup:
    """The arguments of :func:`fit`, and what follows from them; nothing here changes.

    Attributes:
        context: where to compute, and what to report to.
        optimizer: that of the user, or a new one.
        base_rate: learning rate of the optimizer, which the schedule multiplies.
        finds_rate: whether the peak learning rate is found, or that of the optimizer.
        loss: computes the training loss of a batch.
        evaluate: evaluates the network after an epoch, if anything does.
        wrapped: the network as Fabric runs it.
        average: the moving average of the weights, if the settings ask for one.
        steps_per_epoch: optimizer steps; ``steps`` and ``epochs`` are those of the whole training.
        epochs_per_round: epochs between two evaluations.
    """

    model: nn.Module
    batches: Batches
    settings: FitSettings
    options: FitOptions
    context: RunContext
    optimizer: Optimizer
    base_rate: float
    finds_rate: bool
    loss: TrainingLoss
    evaluate: Callable[[], Evaluation] | None
    wrapped: nn.Module
    average: WeightAverage | None
    steps_per_epoch: int
    steps: int
    epochs_per_round: int

    @property
    def phase(self) -> str:
        return self.options.phase

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.steps_per_epoch)


@contextmanager
def _network_ready(model: nn.Module, teacher: Teacher | None, channels_last: bool) -> Iterator[None]:
    """Lay out a network and its teacher in memory, and put the teacher into evaluation mode."""
    with ExitStack() as stack:
        stack.enter_context(weights_channels_last(model, channels_last))
        if teacher is not None:
            stack.enter_context(weights_channels_last(teacher.model, channels_last))
            stack.enter_context(teacher.teaching())
        yield


def _prepare(
    model: nn.Module, batches: Batches, settings: FitSettings, options: FitOptions, context: RunContext
) -> _Setup:
    optimizer = options.optimizer or make_optimizer(model, settings.optimizer)
    is_free = options.optimizer is None or options.find_rate
    loss_fn = options.loss_fn or partial(cross_entropy, label_smoothing=settings.label_smoothing)
    per_epoch = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    if per_epoch == 0:
        raise DataError("there are no batches to train on: the batch size is larger than the data set")
    steps = settings.steps(per_epoch)
    return _Setup(
        model=model,
        batches=batches,
        settings=settings,
        options=options,
        context=context,
        optimizer=optimizer,
        base_rate=largest_rate(optimizer),
        finds_rate=is_free and settings.optimizer.learning_rate == "auto",
        loss=TrainingLoss(
            loss_fn=with_auxiliaries(loss_fn, own=options.loss_fn is None),
            teacher=options.teacher,
            fabric=context.fabric,
            channels_last=context.uses_channels_last(model),
        ),
        evaluate=_evaluator(model, options, context),
        wrapped=context.fabric.setup(model),
        average=WeightAverage(model, settings.ema_decay) if settings.ema_decay else None,
        steps_per_epoch=min(per_epoch, max(steps, 1)),
        steps=steps,
        epochs_per_round=settings.epochs_per_round(per_epoch),
    )


def _evaluator(model: nn.Module, options: FitOptions, context: RunContext) -> Callable[[], Evaluation] | None:
    """Return what evaluates the network after an epoch, if anything does."""
    if options.metric is None and options.validation is None:
        return None
    return partial(validate, model, options.validation, options.metric, options.loss_fn, context)


def _resume(setup: _Setup) -> FitState | None:
    """Restore the state of an earlier call that was killed, if there was one."""
    entry = setup.context.journal.recall(FIT)
    if entry is None or entry.facts["phase"] != setup.phase:
        return None
    restore(entry, setup.model, setup.optimizer)
    if setup.average is not None:
        setup.average.averaged.load_state_dict(under(_AVERAGE, entry.tensors))
    set_epoch(setup.batches, entry.facts["loader_epoch"])
    return FitState.from_entry(entry)


def _begin(setup: _Setup) -> FitState:
    """Evaluate the network before training, choose the learning rate, and report both."""
    state = FitState()
    began = time.perf_counter()
    if setup.evaluate is not None:
        state.start = state.evaluation = setup.evaluate()
        _finish_epoch(setup, state, None, None, time.perf_counter() - began)
    if not setup.steps:
        return state
    seconds: float | None = None
    if not setup.finds_rate:
        state.rate = PeakRate(setup.base_rate, "as given")
        size = getattr(setup.batches, "batch_size", None)
        if state.start is not None and state.start.examples and size:
            seconds = _BACKWARD * state.history[0].seconds * size / state.start.examples
    else:
        trials = find_peak_rate(
            setup.model,
            setup.batches,
            setup.settings,
            setup.loss.of_copy,
            partial(_after_trial_step, setup.context),
            taught=setup.options.teacher is not None,
        )
        report_progress(setup.context.callbacks, _TRIALS, 1, 1)
        state.rate, seconds = setup.context.ranks.broadcast((trials.rate, trials.seconds_per_step))
        state.start_weights = prefixed("", setup.model.state_dict())
    if seconds is not None:
        report_note(setup.context.callbacks, _outlook(setup, state, seconds))
    return state


def _after_trial_step(context: RunContext, done: int, most: int) -> None:
    """Check whether the user stopped the trials of learning rates, and report how far they are."""
    context.interruption.check()
    report_progress(context.callbacks, _TRIALS, done, most)


def _outlook(setup: _Setup, state: FitState, seconds_per_step: float) -> str:
    """Format how long the training will be, how long it will take, and its peak learning rate."""
    assert state.rate is not None
    rounds = math.ceil(setup.epochs / setup.epochs_per_round)
    evaluations = rounds * state.history[0].seconds if state.history else 0.0
    seconds = setup.steps * seconds_per_step + evaluations
    epochs = f"{setup.epochs} epoch{'s' if setup.epochs != 1 else ''}"
    return (
        f"{setup.phase}: {setup.steps:,} updates in {epochs}, about {duration(seconds)}; peak learning rate "
        f"{state.rate.value:.3g} ({state.rate.reason})"
    )


def _start_again(setup: _Setup, state: FitState) -> None:
    """Start a training that diverged once more from the network before it, at a lower learning rate."""
    assert state.start_weights is not None
    assert state.rate is not None
    setup.model.load_state_dict(state.start_weights)
    setup.optimizer.state.clear()
    if setup.average is not None:
        setup.average.restart()
    rate = state.rate.lowered()
    report_note(
        setup.context.callbacks,
        f"{setup.phase}: diverged in epoch {state.epoch} (its loss is above the {state.rate.start_loss:.3g} "
        f"before training); starts once more from the network before training, with a peak learning rate of "
        f"{rate.value:.3g}",
    )
    state.rate, state.start_weights = rate, None
    state.epoch = state.step = state.improved_epoch = 0
    state.restarts += 1


def _outcome(state: FitState) -> str:
    """Format which network is kept, and how it compares with the one before training."""
    start, kept, highest = state.start, state.kept, state.highest
    assert start is not None
    assert kept is not None
    assert highest is not None
    if not state.kept_epoch:
        return f"no epoch is better than the network before training, which is kept ({kept})"
    name = f"epoch {state.kept_epoch}" + (" of the second start" if state.restarts else "")
    if not kept.examples:
        return f"{name} is kept ({kept}; before training {start.kind.show(start.metric)})"
    text = f"{name} is kept ({kept}; before training {start.value}, loss {start.loss:.4f})"
    if highest.quality > kept.quality:
        error = math.hypot(kept.error, highest.error)
        return (
            f"{text}; the highest was {highest.kind.show(highest.metric)} (within the standard error of the "
            f"difference, {highest.kind.show_error(error)} points, so the later epoch is kept)"
        )
    return text


def _record(setup: _Setup, state: FitState) -> None:
    """Write the state before an epoch into the journal."""
    journal = setup.context.journal
    if not journal:
        return
    taken = snapshot(setup.model, setup.optimizer)
    kept, start = prefixed(_KEPT, state.kept_weights or {}), prefixed(_START, state.start_weights or {})
    tensors = {**taken.tensors, **kept, **start}
    if setup.average is not None:
        tensors |= prefixed(_AVERAGE, setup.average.averaged.state_dict())
    facts = {
        "phase": setup.phase,
        "loader_epoch": epoch_of(setup.batches),
        **taken.facts,
        **state.facts(),
    }
    journal.record(FIT, Entry(facts, tensors))


def _run_epochs(setup: _Setup, state: FitState, scale_rates: Callable[[float], float]) -> bool:
    """Train until the end; return whether that was reached, or whether the training diverged before."""
    assert state.rate is not None or not setup.steps
    scale = state.rate.value / setup.base_rate if state.rate is not None else 1.0
    factors = learning_rate_factors(setup.settings.schedule, setup.steps, setup.settings.warmup)
    rates = (scale_rates(scale * factor) for factor in islice(factors, state.step, None))
    while state.epoch < setup.epochs and not _is_out_of_patience(setup, state):
        _record(setup, state)
        began = time.perf_counter()
        is_last = state.epoch + setup.epochs_per_round >= setup.epochs
        observe = setup.options.observe if is_last else None
        with observe or nullcontext() as observer:
            loss, rate = _train_round(setup, state, rates, observer)
        state.epoch = min(state.epoch + setup.epochs_per_round, setup.epochs)
        with setup.average.applied() if setup.average else nullcontext():
            if setup.evaluate is not None:
                state.evaluation = setup.evaluate()
            _finish_epoch(setup, state, loss, rate, time.perf_counter() - began)
        if state.start_weights is not None and state.rate is not None and state.rate.is_exceeded_by(loss):
            return False
    if setup.average is not None:
        setup.model.load_state_dict(setup.average.weights())
    return True


def _train_round(
    setup: _Setup, state: FitState, rates: Iterator[float], observer: Any
) -> tuple[float, float]:
    """Train for the epochs until the next evaluation, or for the steps that are left.

    Each item of ``rates`` sets the next learning rate. Returns the mean loss and the last rate.
    """
    setup.model.train()
    total, examples, rate = 0.0, 0, 0.0
    context = setup.context
    left = min(setup.steps_per_epoch * setup.epochs_per_round, setup.steps - state.step)
    passes = (split_across_ranks(setup.batches, context.ranks) for _ in range(setup.epochs_per_round))
    with synchronized_batch_norm(setup.model, context.ranks):
        for part in islice(chain.from_iterable(passes), left):
            rate = next(rates)
            with _observed(observer, part):
                loss = _train_step(setup, state, part)
            total += loss * part.total
            examples += part.total
            report_progress(context.callbacks, setup.phase, state.step, setup.steps, loss)
            context.interruption.check()
    share_buffers(setup.model, context.ranks)
    if setup.average is not None:
        share_buffers(setup.average.averaged, context.ranks)
    if not examples:
        raise DataError(
            f"{setup.phase}: a pass through the batches gave none, so they can be gone through only once: "
            "pass a list of batches or a DataLoader"
        )
    return total / examples, rate


def _train_step(setup: _Setup, state: FitState, part: RankBatch) -> float:
    """Take one optimizer step with this process's part of a batch; return the loss of the whole batch."""
    ranks = setup.context.ranks
    set_weight(setup.context.fabric, part.weight)
    try:
        value = take_step(
            setup.wrapped,
            setup.optimizer,
            lambda: setup.loss(setup.wrapped, part.batch),
            setup.settings.clip_norm,
            lambda loss: mean_loss(loss, part, ranks),
            setup.context.fabric.backward,
        )
    except NotFiniteError as error:
        raise TrainingError(
            f"{setup.phase}: {error} at epoch {state.epoch + 1}, step {state.step + 1}; "
            "lower the learning rate, or clip the gradient"
        ) from None
    if setup.average is not None:
        setup.average.update()
    state.step += 1
    return value


def _observed(observer: Any, part: RankBatch) -> AbstractContextManager[Any]:
    """Give a watch the size of the batch, and mute it if no example of the batch is here."""
    if not isinstance(observer, ScoreCollector):
        return nullcontext()
    observer.expects(part.total)
    return nullcontext() if part.examples else observer.muted()


def _finish_epoch(
    setup: _Setup, state: FitState, loss: float | None, rate: float | None, seconds: float
) -> None:
    """Record the epoch, keep the network if it is preferred, and report."""
    evaluation = state.evaluation
    is_kept = evaluation is not None and _consider(state, evaluation) and setup.settings.keep_best
    if is_kept:
        setup.context.save("best", evaluation)
        state.kept_weights = prefixed("", setup.model.state_dict())
    if state.epoch:  # before the first epoch, it is kept already
        setup.context.save("last", evaluation)
    done = EpochDone(
        phase=setup.phase,
        epoch=state.epoch,
        epochs=setup.epochs,
        loss=loss,
        learning_rate=rate,
        seconds=seconds,
        metric=evaluation.metric if evaluation else None,
        metric_name=evaluation.name if evaluation else TOP_1.name,
        validation_loss=evaluation.loss if evaluation and evaluation.examples else None,
        kept=is_kept,
    )
    state.history.append(done)
    report_epoch(setup.context.callbacks, done)


def _consider(state: FitState, evaluation: Evaluation) -> bool:
    """Return whether the network is kept from now on."""
    assert state.start is not None
    losses = [done.validation_loss for done in state.history if done.validation_loss is not None]
    if state.highest is None or evaluation.quality > state.highest.quality:
        state.highest, state.improved_epoch = evaluation, state.epoch
    elif evaluation.loss < min(losses, default=-math.inf):
        state.improved_epoch = state.epoch
    if state.kept is not None and not is_preferred(evaluation, state.kept, state.start, state.highest):
        return False
    state.kept, state.kept_epoch = evaluation, state.epoch
    return True


def _is_out_of_patience(setup: _Setup, state: FitState) -> bool:
    """Return whether too many epochs have passed without an improvement."""
    patience = setup.settings.patience
    return patience is not None and state.kept is not None and state.epoch - state.improved_epoch >= patience


@contextmanager
def weights_channels_last(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Lay out the weights of a network channels-last for a block, and contiguous afterwards.

    Args:
        model: changed in place; parameters keep their identity.
        enabled: whether to do anything.
    """
    if not enabled:
        yield
        return
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
