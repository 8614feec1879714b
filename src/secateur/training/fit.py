"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from secateur.batches import refuse_one_shot
from secateur.errors import DataError, TrainingError
from secateur.graph.capture import mode_of
from secateur.heap import kept_where_allowed
from secateur.ranks import Share, shares
from secateur.training.averaging import Average
from secateur.training.batchnorm import joint_batch_norm
from secateur.training.devices import Machine, arranged, laid_out, make_machine
from secateur.training.distillation import Teacher
from secateur.training.evaluate import Batches, Evaluation, Metric, evaluate
from secateur.training.events import EpochDone, TrainingCallback, report_progress
from secateur.training.interrupt import Interruption, StoppedError
from secateur.training.joint import agree_on_buffers, mean_loss, seen_by
from secateur.training.journal import Entry, Journal
from secateur.training.losses import LossFunction, with_auxiliaries
from secateur.training.optimizers import LearningRates, make_optimizer
from secateur.training.schedules import factor
from secateur.training.settings import FitSettings
from secateur.training.snapshot import restore, snapshot, under
from secateur.training.state import BEST, Fit, passes, prefixed, recalled, set_passes

_BEYOND_CHANCE = 2.0  # standard errors, about one case in twenty

Keep = Callable[[str, Evaluation | None], object]
"""Called when the network is worth writing to disk: with ``"last"`` before the first epoch, after each and
when stopped; before that with ``"best"`` if it is the best so far and settings say to keep that."""

Judge = Callable[[], Evaluation]


def keep_nothing(name: str, evaluation: Evaluation | None) -> None:
    """Writes nothing to disk."""


@dataclass(frozen=True)
class Surroundings:
    """What a fit may use and tell besides the network and the data; every part has a default.

    Attributes:
        machine: where to compute.
        callbacks: receive progress and epochs.
        interruption: asked after each step.
        keep: called when the network is worth writing to disk.
        journal: keeps what is needed to go on after a kill.
    """

    machine: Machine = field(default_factory=make_machine)
    callbacks: Sequence[TrainingCallback] = ()
    interruption: Interruption = field(default_factory=Interruption)
    keep: Keep = keep_nothing
    journal: Journal = field(default_factory=Journal)


FIT = "fit"
"""Name of this part of a journal."""

_AVERAGE = "average."


@kept_where_allowed()
def fit(
    model: nn.Module,
    batches: Batches,
    settings: FitSettings,
    *,
    validation: Batches | None = None,
    metric: Metric | None = None,
    optimizer: Optimizer | None = None,
    loss_fn: LossFunction | None = None,
    teacher: Teacher | None = None,
    observe: AbstractContextManager[Any] | None = None,
    phase: str = "training",
    surroundings: Surroundings | None = None,
) -> Fit:
    """Trains a network in place.

    Before the first epoch, and after each, ``surroundings.keep`` is called, so that a good state is
    on the disk whatever happens next.

    Args:
        model: returns class scores, or a tuple with auxiliary scores behind them in training mode.
        batches: pairs of inputs and class indices; gone through once an epoch. Several processes are given
            the same batches; each takes a part of every one.
        settings: epochs, schedule, and the optimizer if none is handed in.
        validation: judged after each epoch.
        metric: judges the network after each epoch instead; larger is better.
        optimizer: used, and its state kept, instead of a new one.
        loss_fn: mean loss of a batch; cross-entropy with the settings' label smoothing if not given.
        teacher: a network whose answers count beside the targets.
        observe: entered for the last epoch, for example to collect scores from its steps.
        phase: name of this work in events.
        surroundings: where to compute and whom to tell.

    Returns:
        The history. The network is as after the best epoch if ``settings.keep_best``
        and there is something to judge by, else as after the last.

    Raises:
        TrainingError: the loss is not finite; the step is not taken.
        DataError: there are no batches.
        UsageError: batches or validation can be gone through only once.
        StoppedError: the user asked to stop; the step was finished and the state kept.

    With a journal in the surroundings, the state is kept after each epoch but the last; a call with the same
    arguments then goes on from there, to the same bits.
    """
    refuse_one_shot(batches)
    refuse_one_shot(validation, "validation")
    around = surroundings or Surroundings()
    loop = _Loop(
        model=model,
        batches=batches,
        settings=settings,
        optimizer=optimizer or make_optimizer(model, settings.optimizer),
        loss_fn=with_auxiliaries(loss_fn or partial(cross_entropy, label_smoothing=settings.label_smoothing)),
        teacher=teacher,
        phase=phase,
        around=around,
    )
    loop.take_up()
    around.keep("last", None)
    with laid_out(model, loop.channels_last), loop.taught():
        try:
            loop.run(loop.judge_of(validation, metric), observe or nullcontext())
        except StoppedError:
            around.keep("last", None)
            around.journal.flush()
            raise
        finally:
            loop.rates.restore()  # the next phase begins at the base rate
    if loop.state.best_weights is not None:
        model.load_state_dict(loop.state.best_weights)
    return loop.state


@dataclass
class _Loop:
    """One call of :func:`fit`, taken apart."""

    model: nn.Module
    batches: Batches
    settings: FitSettings
    optimizer: Optimizer
    loss_fn: Callable[[Any, Tensor], Tensor]
    teacher: Teacher | None
    phase: str
    around: Surroundings
    state: Fit = field(default_factory=Fit)

    def __post_init__(self) -> None:
        fabric = self.around.machine.fabric
        self.wrapped, self.stepper = fabric.setup(self.model, self.optimizer)
        self.rates = LearningRates(self.optimizer)
        self.channels_last = self.around.machine.lays_channels_last(self.model)
        per_epoch = len(self.batches) if isinstance(self.batches, Sized) else sum(1 for _ in self.batches)
        if per_epoch == 0:
            raise DataError("there are no batches to train on: the batch size is larger than the data set")
        updates = self.settings.updates
        self.steps = updates if updates is not None else self.settings.epochs * per_epoch
        self.per_epoch = min(per_epoch, max(self.steps, 1))
        self.epochs = math.ceil(self.steps / self.per_epoch)
        decay = self.settings.average
        self.average = Average(self.model, decay) if decay else None

    @contextmanager
    def taught(self) -> Iterator[None]:
        """The teacher, if there is one, made ready for a block: in the layout of the network."""
        if self.teacher is None:
            yield
            return
        with laid_out(self.teacher.model, self.channels_last), self.teacher.teaching():
            yield

    def run(self, judge: Judge | None, observer: AbstractContextManager[Any]) -> None:
        """All epochs."""
        while self.state.epoch < self.epochs and not self.out_of_patience():
            self.take_down()
            began = time.perf_counter()
            last = self.state.epoch + 1 == self.epochs
            with observer if last else nullcontext() as observing:
                loss, rate = self.train_epoch(observing)
            self.state.epoch += 1
            with self.average.applied() if self.average else nullcontext():
                if judge is not None:
                    self.state.evaluation = judge()
                self.close_epoch(loss, rate, time.perf_counter() - began)
        if self.average is not None:
            self.model.load_state_dict(self.average.weights())

    def take_up(self) -> None:
        """Goes on where an earlier call was when it was killed, if there was one."""
        entry = self.around.journal.recall(FIT)
        if entry is None or entry.facts["phase"] != self.phase:
            return
        restore(entry, self.model, self.optimizer)
        self.state = recalled(entry)
        if self.average is not None:
            self.average.averaged.load_state_dict(under(_AVERAGE, entry.tensors))
        set_passes(self.batches, entry.facts["passes"])

    def take_down(self) -> None:
        """Keeps the state before an epoch."""
        journal = self.around.journal
        if not journal:
            return
        taken = snapshot(self.model, self.optimizer)
        tensors = {**taken.tensors, **prefixed(BEST, self.state.best_weights or {})}
        if self.average is not None:
            tensors |= prefixed(_AVERAGE, self.average.averaged.state_dict())
        facts = {"phase": self.phase, "passes": passes(self.batches), **taken.facts, **self.state.facts()}
        journal.record(FIT, Entry(facts, tensors))

    def train_epoch(self, observer: Any) -> tuple[float, float]:
        """One pass, or what is left of the steps: mean loss and last learning rate."""
        self.model.train()
        total, examples, rate = 0.0, 0, 0.0
        machine = self.around.machine
        with joint_batch_norm(self.model, machine.portion, machine.ranks):
            for share in self.next_shares():
                rate = self.rates.scale(
                    factor(self.settings.schedule, self.state.step, self.steps, self.settings.warmup)
                )
                with seen_by(observer, share):
                    loss = self.train_step(share)
                total += loss * share.of
                examples += share.of
                report_progress(self.around.callbacks, self.phase, self.state.step, self.steps, loss)
                self.around.interruption.check()
        agree_on_buffers(self.model, machine.ranks)
        return total / examples, rate

    def next_shares(self) -> Iterator[Share]:
        """The parts of this process of the batches of one epoch, but of no more than steps are left."""
        left = min(self.per_epoch, self.steps - self.state.step)
        for _, share in zip(range(left), shares(self.batches, self.around.machine.ranks), strict=False):
            yield share

    def train_step(self, share: Share) -> float:
        """One optimizer step on one batch, of which a part is here; the loss of the whole batch."""
        machine = self.around.machine
        machine.portion.weight = share.weight
        inputs, targets = share.batch
        self.optimizer.zero_grad(set_to_none=True)
        inputs = arranged(inputs.to(machine.device), self.channels_last)
        outputs = self.wrapped(inputs)
        loss = self.loss_fn(outputs, targets.to(machine.device))
        if self.teacher is not None:
            with machine.fabric.autocast():
                loss = self.teacher.join(loss, outputs, inputs)
        value = mean_loss(float(loss.detach()), machine.portion, machine.ranks)
        if not math.isfinite(value):
            place = f"epoch {self.state.epoch + 1}, step {self.state.step + 1}"
            raise TrainingError(
                f"{self.phase}: the loss is {value} at {place}; lower the learning rate, or clip the gradient"
            )
        machine.fabric.backward(loss)
        if self.settings.clip_norm:
            machine.fabric.clip_gradients(self.wrapped, self.stepper, max_norm=self.settings.clip_norm)
        self.stepper.step()
        if self.average is not None:
            self.average.update()
        self.state.step += 1
        return value

    def judge_of(self, validation: Batches | None, metric: Metric | None) -> Judge | None:
        """What judges the network after an epoch, if anything does."""
        if metric is not None:
            return partial(self.measure, metric)
        return None if validation is None else partial(self.evaluate, validation)

    def measure(self, metric: Metric) -> Evaluation:
        """The network by a metric of the user's."""
        with mode_of(self.model, training=False), torch.no_grad():
            return Evaluation(float(metric(self.model)), 0.0, 0)

    def evaluate(self, validation: Batches) -> Evaluation:
        """The network by its accuracy."""
        return evaluate(
            self.model,
            validation,
            machine=self.around.machine,
            task="validating",
            callbacks=self.around.callbacks,
            interruption=self.around.interruption,
        )

    def is_better(self, evaluation: Evaluation) -> bool:
        """Whether the network is worth keeping instead of the best so far."""
        best = self.state.best
        if best is None:
            return True
        if self.settings.schedule == "constant":
            return evaluation.rank > best.rank
        highest = max(done.top1 for done in self.state.history if done.top1 is not None)
        return evaluation.top1 > highest - _BEYOND_CHANCE * best.error

    def out_of_patience(self) -> bool:
        """Whether too many epochs have gone by without a better one."""
        state, patience = self.state, self.settings.patience
        return patience is not None and state.best is not None and state.epoch - state.best_epoch >= patience

    def close_epoch(self, loss: float, rate: float, seconds: float) -> None:
        """Writes the epoch down, keeps the network, and tells about it."""
        state = self.state
        evaluation = state.evaluation
        found = evaluation is not None and self.is_better(evaluation)
        best = found and self.settings.keep_best
        if found:
            state.best, state.best_epoch = evaluation, state.epoch
        if best:
            self.around.keep("best", evaluation)
            weights = self.model.state_dict()
            state.best_weights = {name: value.detach().clone() for name, value in weights.items()}
        self.around.keep("last", evaluation)
        done = EpochDone(
            phase=self.phase,
            epoch=state.epoch,
            epochs=self.epochs,
            loss=loss,
            learning_rate=rate,
            seconds=seconds,
            top1=evaluation.top1 if evaluation else None,
            validation_loss=evaluation.loss if evaluation else None,
            best=best,
        )
        state.history.append(done)
        for callback in self.around.callbacks:
            callback.on_epoch_end(done)
