"""Train a network: the training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from secateur._compat import tree_map_only
from secateur.batches import refuse_one_shot, split_with_targets
from secateur.criteria import ScoreCollector
from secateur.data.loader import epoch_of, set_epoch
from secateur.devices import channels_last
from secateur.errors import DataError, StoppedError, TrainingError
from secateur.graph.capture.program import call_arguments, mode_of
from secateur.ranks import RankBatch, split_across_ranks
from secateur.training.context import RunContext
from secateur.training.distillation import Teacher
from secateur.training.ema import WeightAverage
from secateur.training.evaluate import Batches, Evaluation, Metric, evaluate
from secateur.training.events import EpochDone, report_progress
from secateur.training.losses import LossFunction, with_auxiliaries
from secateur.training.optimizers import learning_rate_factors, make_optimizer, scaled_learning_rates
from secateur.training.process_group import mean_loss, set_weight, share_buffers, synchronized_batch_norm
from secateur.training.resume import Entry, prefixed, restore, snapshot, under
from secateur.training.settings import FitSettings

FIT = "fit"
"""Name of this part of a journal."""

_BEST, _AVERAGE = "best.", "average."
_BEYOND_CHANCE = 2.0  # standard errors, about one case in twenty


class FitOptions(TypedDict, total=False):
    """Name what :func:`fit` may be given besides network, batches and settings.

    Attributes:
        validation: evaluated after each epoch.
        metric: called with the network after each epoch instead; larger is better.
        optimizer: used, and its state kept, instead of a new one.
        loss_fn: mean loss of a batch; cross-entropy with the settings' label smoothing if not given, and the
            loss that the network returns for batches that are mappings. For these it is called with all that
            the network returns, and with the batch.
        teacher: a network whose outputs are learnt besides the targets; not from batches that are mappings,
            whose outputs may not be class scores.
        observe: entered for the last epoch, for example to collect scores from its steps.
        phase: name of this training in events, ``"training"`` if not given.
        context: where to compute, and what to report to. If not given, the network is trained on its device,
            in float32.
    """

    validation: Batches | None
    metric: Metric | None
    optimizer: Optimizer | None
    loss_fn: LossFunction | None
    teacher: Teacher | None
    observe: AbstractContextManager[Any] | None
    phase: str
    context: RunContext | None


@dataclass
class FitState:
    """Hold all that changes from step to step besides network and optimizer.

    Attributes:
        epoch: number of finished epochs.
        step: number of finished optimizer steps.
        evaluation: of the last epoch, if there is validation data.
        best: the best evaluation so far.
        best_epoch: its number.
        history: all epochs so far.
        best_weights: of the network after the best epoch, if the settings keep it.
    """

    epoch: int = 0
    step: int = 0
    evaluation: Evaluation | None = None
    best: Evaluation | None = None
    best_epoch: int = 0
    history: list[EpochDone] = field(default_factory=list)
    best_weights: dict[str, Tensor] | None = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return everything but the weights as plain values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
            "best": None if self.best is None else asdict(self.best),
            "best_epoch": self.best_epoch,
            "history": [asdict(done) for done in self.history],
        }

    @classmethod
    def from_entry(cls, entry: Entry) -> FitState:
        """Read a state from a journal, with the best weights if they are there."""
        facts = entry.facts
        evaluation, best = (
            None if facts[name] is None else Evaluation(**facts[name]) for name in ("evaluation", "best")
        )
        history = [EpochDone(**done) for done in facts["history"]]
        weights = under(_BEST, entry.tensors) or None
        return cls(facts["epoch"], facts["step"], evaluation, best, facts["best_epoch"], history, weights)


def fit(model: nn.Module, batches: Batches, settings: FitSettings, **options: Unpack[FitOptions]) -> FitState:
    """Train a network in place.

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
        **options: see :class:`FitOptions`.

    Returns:
        The history. The network is as after the best epoch if ``settings.keep_best``
        and it was evaluated, else as after the last.

    Raises:
        TrainingError: the loss is not finite; the step is not taken.
        DataError: there are no batches.
        UsageError: batches or validation can be iterated only once.
        StoppedError: the user asked to stop; the step was finished and the state kept.
    """
    refuse_one_shot(batches)
    refuse_one_shot(options.get("validation"), "validation")
    context = options.get("context") or RunContext.of(model)
    # Laid out before Fabric wraps the network: DistributedDataParallel keeps gradients as weights lie then.
    with _network_ready(model, options.get("teacher"), context.uses_channels_last(model)):
        setup = _prepare(model, batches, settings, options, context)
        state = _resume(setup)
        context.save("last", None)
        with scaled_learning_rates(setup.optimizer) as scale_rates:
            try:
                _run_epochs(setup, state, scale_rates)
            except StoppedError:
                context.save("last", None)
                context.journal.flush()
                raise
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    return state


@dataclass(frozen=True)
class _Setup:
    """The arguments of :func:`fit`, completed; nothing here changes.

    Attributes:
        wrapped: the network as Fabric runs it; ``stepper`` is its optimizer.
        steps_per_epoch: optimizer steps; ``steps`` and ``epochs`` are those of the whole training.
    """

    model: nn.Module
    batches: Batches
    settings: FitSettings
    optimizer: Optimizer
    loss_fn: LossFunction
    teacher: Teacher | None
    evaluate: Callable[[], Evaluation] | None
    observe: AbstractContextManager[Any]
    phase: str
    context: RunContext
    wrapped: Any
    stepper: Any
    average: WeightAverage | None
    channels_last: bool
    steps_per_epoch: int
    steps: int

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
    optimizer = options.get("optimizer") or make_optimizer(model, settings.optimizer)
    given = options.get("loss_fn")
    loss_fn = given or partial(cross_entropy, label_smoothing=settings.label_smoothing)
    wrapped, stepper = context.fabric.setup(model, optimizer)
    per_epoch = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    if per_epoch == 0:
        raise DataError("there are no batches to train on: the batch size is larger than the data set")
    steps = settings.updates if settings.updates is not None else settings.epochs * per_epoch
    return _Setup(
        model=model,
        batches=batches,
        settings=settings,
        optimizer=optimizer,
        loss_fn=with_auxiliaries(loss_fn, own=given is None),
        teacher=options.get("teacher"),
        evaluate=_evaluator(model, options.get("validation"), options.get("metric"), context),
        observe=options.get("observe") or nullcontext(),
        phase=options.get("phase", "training"),
        context=context,
        wrapped=wrapped,
        stepper=stepper,
        average=WeightAverage(model, settings.average) if settings.average else None,
        channels_last=context.uses_channels_last(model),
        steps_per_epoch=min(per_epoch, max(steps, 1)),
        steps=steps,
    )


def _evaluator(
    model: nn.Module, validation: Batches | None, metric: Metric | None, context: RunContext
) -> Callable[[], Evaluation] | None:
    """Return what evaluates the network after an epoch, if anything does."""
    if metric is not None:
        return partial(_measure, model, metric)
    if validation is not None:
        return partial(evaluate, model, validation, context=context, task="validating")
    return None


def _measure(model: nn.Module, metric: Metric) -> Evaluation:
    with mode_of(model, training=False), torch.no_grad():
        return Evaluation(float(metric(model)), name="metric")


def _resume(setup: _Setup) -> FitState:
    """Restore the state of an earlier call that was killed, if there was one."""
    entry = setup.context.journal.recall(FIT)
    if entry is None or entry.facts["phase"] != setup.phase:
        return FitState()
    restore(entry, setup.model, setup.optimizer)
    if setup.average is not None:
        setup.average.averaged.load_state_dict(under(_AVERAGE, entry.tensors))
    set_epoch(setup.batches, entry.facts["loader_epoch"])
    return FitState.from_entry(entry)


def _record(setup: _Setup, state: FitState) -> None:
    """Write the state before an epoch into the journal."""
    journal = setup.context.journal
    if not journal:
        return
    taken = snapshot(setup.model, setup.optimizer)
    tensors = {**taken.tensors, **prefixed(_BEST, state.best_weights or {})}
    if setup.average is not None:
        tensors |= prefixed(_AVERAGE, setup.average.averaged.state_dict())
    facts = {"phase": setup.phase, "loader_epoch": epoch_of(setup.batches), **taken.facts, **state.facts()}
    journal.record(FIT, Entry(facts, tensors))


def _run_epochs(setup: _Setup, state: FitState, scale_rates: Callable[[float], float]) -> None:
    factors = islice(
        learning_rate_factors(setup.settings.schedule, setup.steps, setup.settings.warmup), state.step, None
    )
    while state.epoch < setup.epochs and not _is_out_of_patience(setup, state):
        _record(setup, state)
        began = time.perf_counter()
        is_last = state.epoch + 1 == setup.epochs
        with setup.observe if is_last else nullcontext() as observer:
            loss, rate = _train_epoch(setup, state, (scale_rates(factor) for factor in factors), observer)
        state.epoch += 1
        with setup.average.applied() if setup.average else nullcontext():
            if setup.evaluate is not None:
                state.evaluation = setup.evaluate()
            _finish_epoch(setup, state, loss, rate, time.perf_counter() - began)
    if setup.average is not None:
        setup.model.load_state_dict(setup.average.weights())


def _train_epoch(
    setup: _Setup, state: FitState, rates: Iterator[float], observer: Any
) -> tuple[float, float]:
    """Train for one pass over the batches, or for the steps that are left.

    Each item of ``rates`` sets the next learning rate. Returns the mean loss and the last rate.
    """
    setup.model.train()
    total, examples, rate = 0.0, 0, 0.0
    context = setup.context
    left = min(setup.steps_per_epoch, setup.steps - state.step)
    parts = islice(split_across_ranks(setup.batches, context.ranks), left)
    with synchronized_batch_norm(setup.model, context.ranks):
        for part in parts:
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
    return total / examples, rate


def _train_step(setup: _Setup, state: FitState, part: RankBatch) -> float:
    """Take one optimizer step on one batch, of which a part is here; return the loss of the whole batch."""
    context = setup.context
    inputs, targets = split_with_targets(part.batch, "training")
    setup.optimizer.zero_grad(set_to_none=True)
    inputs, targets = tree_map_only(Tensor, lambda leaf: leaf.to(context.device), (inputs, targets))
    if setup.channels_last:
        inputs = tree_map_only(Tensor, lambda leaf: channels_last(leaf) if leaf.ndim == 4 else leaf, inputs)
    args, kwargs = call_arguments(inputs)
    outputs = setup.wrapped(*args, **kwargs)
    loss = setup.loss_fn(outputs, targets)
    if setup.teacher is not None and not isinstance(targets, Mapping):
        with context.fabric.autocast():
            loss = setup.teacher.join(loss, outputs, inputs)
    value = mean_loss(float(loss.detach()), part, context.ranks)
    if not math.isfinite(value):
        raise TrainingError(
            f"{setup.phase}: the loss is {value} at epoch {state.epoch + 1}, step {state.step + 1}; "
            "lower the learning rate, or clip the gradient"
        )
    set_weight(context.fabric, part.weight)
    context.fabric.backward(loss)
    if setup.settings.clip_norm:
        context.fabric.clip_gradients(setup.wrapped, setup.stepper, max_norm=setup.settings.clip_norm)
    setup.stepper.step()
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


def _finish_epoch(setup: _Setup, state: FitState, loss: float, rate: float, seconds: float) -> None:
    """Record the epoch, save the network, and report."""
    evaluation = state.evaluation
    is_better = evaluation is not None and _is_better(setup, state, evaluation)
    is_best = is_better and setup.settings.keep_best
    if is_better:
        state.best, state.best_epoch = evaluation, state.epoch
    if is_best:
        setup.context.save("best", evaluation)
        state.best_weights = prefixed("", setup.model.state_dict())
    setup.context.save("last", evaluation)
    done = EpochDone(
        phase=setup.phase,
        epoch=state.epoch,
        epochs=setup.epochs,
        loss=loss,
        learning_rate=rate,
        seconds=seconds,
        top1=evaluation.metric if evaluation else None,
        validation_loss=evaluation.loss if evaluation else None,
        best=is_best,
    )
    state.history.append(done)
    for callback in setup.context.callbacks:
        callback.on_epoch_end(done)


def _is_better(setup: _Setup, state: FitState, evaluation: Evaluation) -> bool:
    """Return whether the network is worth keeping instead of the best so far."""
    if state.best is None:
        return True
    if setup.settings.schedule == "constant":
        return evaluation.rank > state.best.rank
    highest = max(done.top1 for done in state.history if done.top1 is not None)
    return evaluation.metric > highest - _BEYOND_CHANCE * state.best.error


def _is_out_of_patience(setup: _Setup, state: FitState) -> bool:
    """Return whether too many epochs have passed without a better one."""
    patience = setup.settings.patience
    return patience is not None and state.best is not None and state.epoch - state.best_epoch >= patience


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
