"""Train and validate detectors with ultralytics."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from secateur.detection.files import keep_from_rebuilding
from secateur.detection.library import ultralytics_in_use
from secateur.detection.raw_outputs import DistilledLoss, bare_copy
from secateur.detection.results import evaluation_of
from secateur.detection.settings import DetectorSettings
from secateur.errors import UsageError
from secateur.formats import first_line
from secateur.training.distillation import Teacher
from secateur.training.events import EpochDone, TrainingCallback, report_epoch, report_progress
from secateur.training.loop import FitState
from secateur.untouched import untouched

_SHOWN = (
    *("epochs", "batch", "imgsz", "nbs", "optimizer", "lr0", "lrf", "momentum", "weight_decay"),
    *("warmup_epochs", "close_mosaic"),
)
"""Arguments of ultralytics that are recorded beside those that the user gave."""

PHASE = "fine-tuning"
"""Name of this training in events."""


@dataclass
class Tuned(FitState):
    """The result of a training with ultralytics.

    Attributes:
        before: metrics of the network before the training, by the names of ultralytics.
        metrics: of what is kept.
        arguments: of ultralytics that were used, with what it and Secateur chose; none without a training.
    """

    before: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def begun(cls, before: Mapping[str, float] | None, epochs: int = 0) -> Tuned:
        """Describe a training that has not taken a step.

        Args:
            before: metrics of the network, if they are known.
            epochs: of the training.
        """
        if before is None:
            return cls()
        state = cls(before=before, start=evaluation_of(before))
        state.add(EpochDone(PHASE, 0, epochs, None, None, 0.0), before)
        return state

    def add(self, done: EpochDone, found: Mapping[str, float]) -> bool:
        """Add an epoch; among equals the later one is kept, which was trained for longer.

        Args:
            done: the epoch; its metric is filled in here.
            found: what was measured after it, by the names of ultralytics.

        Returns:
            Whether it is the best so far.
        """
        evaluation = evaluation_of(found)
        kept = not self.metrics or found["fitness"] >= self.metrics["fitness"]
        if kept:
            self.metrics, self.kept, self.kept_epoch = found, evaluation, done.epoch
        if self.highest is None or evaluation.quality > self.highest.quality:
            self.highest, self.improved_epoch = evaluation, done.epoch
        self.epoch, self.evaluation = done.epoch, evaluation
        self.history.append(replace(done, metric=evaluation.metric, metric_name=evaluation.name, kept=kept))
        return kept


@dataclass(frozen=True)
class DetectorTuner:
    """Train and validate with ultralytics.

    Attributes:
        data: the data file.
        out: folder for the records of ultralytics.
        settings: images and training.
        callbacks: receive reports.
        seed: of training.
        source: the data in the words of the user, for messages; the data file if not given.
    """

    data: Path
    out: Path
    settings: DetectorSettings = field(default_factory=DetectorSettings)
    callbacks: Sequence[TrainingCallback] = ()
    seed: int = 0
    source: str | Path | None = None
    _readers: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def reader(self, network: nn.Module) -> Any:
        """Return the trainer that reads the data; it is made once, for a network and smaller versions of it.

        Args:
            network: not changed.
        """
        if "data" not in self._readers:
            self._readers["data"] = self.trainer(bare_copy(network), epochs=1, name="data")
        return self._readers["data"]

    def trainer(self, network: nn.Module, epochs: int, name: str) -> Any:
        """Create a trainer for a network, with its data; the process is left as it was."""
        with ultralytics_in_use(), _process_restored():
            return self._created(network, epochs, name)

    def _created(self, network: nn.Module, epochs: int, name: str) -> Any:
        from secateur.detection.trainers import trainer_for

        arguments = {
            "task": network.task,
            "mode": "train",
            "model": str(self.out / "pruned.pt"),
            "data": str(self.data),
            "imgsz": image_size_of(network, self.settings),
            "batch": self.settings.batch,
            "epochs": epochs,
            "device": _device(network),
            "project": str(self.out.resolve()),
            "name": name,
            "exist_ok": True,
            "plots": False,
            "verbose": False,
            "seed": self.seed,
            # The default, 0.1, is for networks that are not trained yet.
            "warmup_bias_lr": 0.0,
            **self.settings.options,
        }
        try:
            trainer: Any = trainer_for(network)(overrides=arguments)
        except (SyntaxError, TypeError, ValueError, RuntimeError) as error:
            reason = first_line(error).replace(str(self.data), str(self.source or self.data))
            raise UsageError(f"ultralytics: {reason}") from error
        trainer.model = network
        return trainer

    def train(
        self,
        network: nn.Module,
        epochs: int,
        start: Mapping[str, float] | None = None,
        teacher: Teacher | None = None,
    ) -> Tuned:
        """Train a network in place, and keep the best epoch, or the start if all epochs are worse.

        Among equals the later one is kept, which was trained for longer.

        Args:
            network: the network.
            epochs: passes over the training images; with none, only ``start`` is reported.
            start: its metrics before; the first epoch is the best so far if not given.
            teacher: a network that returns raw outputs, which are learnt besides the labels.

        Returns:
            The course of the training, the metrics of what is kept, and the arguments that were used.
        """
        state, weights = Tuned.begun(start, epochs), deepcopy(network.state_dict())
        for done in state.history:
            report_epoch(self.callbacks, done)
        if not epochs:
            return state

        def after_epoch(trainer: Any) -> None:
            nonlocal weights
            found = {
                name: float(value) for name, value in {**trainer.metrics, "fitness": trainer.fitness}.items()
            }
            number, loss, rate = trainer.epoch + 1, _total(trainer.tloss), max(trainer.lr.values())
            report_progress(self.callbacks, PHASE, number, epochs, loss)
            seconds = time.time() - trainer.epoch_time_start
            if state.add(EpochDone(PHASE, number, epochs, loss, float(rate), seconds), found):
                weights = deepcopy(trainer.ema.ema.state_dict())
            report_epoch(self.callbacks, state.history[-1])

        def after_batch(trainer: Any) -> None:
            # A callback may stop the training.
            report_progress(self.callbacks, PHASE, trainer.epoch, epochs)

        trained = bare_copy(network)
        keep_from_rebuilding(trained)  # in the files that ultralytics writes
        with ultralytics_in_use(), _process_restored():
            trainer = self._created(trained, epochs, "fine-tuning")
            trainer.add_callback("on_train_batch_end", after_batch)
            trainer.add_callback("on_model_save", after_epoch)
            with nullcontext() if teacher is None else _distilling(trainer, teacher):
                trainer.train()
        network.load_state_dict(weights)
        used = {**vars(trainer.args), **_of_optimizer(trainer.optimizer)}
        state.arguments = {name: used[name] for name in (*_SHOWN, *self.settings.options) if name in used}
        return state

    def validate(self, network: nn.Module, split: str = "val") -> dict[str, float]:
        """Measure a copy of a network on the images of a split, which are listed once."""
        reader = self.reader(network)
        with ultralytics_in_use():
            if split not in self._readers:
                self._readers[split] = reader.get_dataloader(
                    reader.data[split], batch_size=self.settings.batch, rank=-1, mode="val"
                )
            reader.test_loader = self._readers[split]
            found = reader.get_validator()(model=bare_copy(network))
        return {name: float(value) for name, value in found.items()}


_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED")


@contextmanager
def _process_restored() -> Iterator[None]:
    """Put back, after a block, what a trainer of ultralytics sets in the process and its environment."""
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    try:
        with untouched():
            yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _distilling(trainer: Any, teacher: Teacher) -> Iterator[None]:
    """Let a trainer learn the outputs of a teacher as well, within a block."""

    def start(trainer: Any) -> None:
        model = trainer.model
        model.criterion = DistilledLoss(model.init_criterion(), teacher)

    trainer.add_callback("on_train_start", start)
    with teacher.teaching():
        yield


def image_size_of(network: nn.Module, settings: DetectorSettings) -> int:
    """Return the side of the images: if not set, that of the detector's training, or the usual one."""
    trained = getattr(network, "args", None)
    side = trained.get("imgsz") if isinstance(trained, Mapping) else getattr(trained, "imgsz", None)
    usual = 224 if getattr(network, "task", None) == "classify" else 640
    return settings.image_size or (side if isinstance(side, int) else usual)


def _total(losses: Any) -> float:
    """Sum the parts of a loss: a mapping, or a tensor in earlier versions of ultralytics."""
    return float(sum(losses.values()) if isinstance(losses, Mapping) else losses.sum())


def _of_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Return what ultralytics made of its arguments for an optimizer, by their names."""
    groups = optimizer.param_groups
    momentum = groups[0].get("momentum", groups[0].get("betas", (None,))[0])
    return {
        "optimizer": type(optimizer).__name__,
        "lr0": max(group.get("initial_lr", group["lr"]) for group in groups),
        "momentum": momentum,
        "weight_decay": max(group["weight_decay"] for group in groups),
    }


def _device(network: nn.Module) -> str:
    device = next(network.parameters()).device
    return "cpu" if device.type == "cpu" else str(device.index or 0)
