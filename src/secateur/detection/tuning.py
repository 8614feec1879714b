"""Train and validate detectors with ultralytics."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from secateur.detection.files import keep_from_rebuilding
from secateur.detection.raw_outputs import DistilledLoss, bare_copy
from secateur.detection.results import in_words
from secateur.detection.settings import DetectorSettings
from secateur.errors import UsageError
from secateur.formats import first_line
from secateur.training.distillation import Teacher
from secateur.training.events import TrainingCallback, report_note, report_progress
from secateur.untouched import untouched

_SHOWN = (
    *("epochs", "batch", "imgsz", "nbs", "optimizer", "lr0", "lrf", "momentum", "weight_decay"),
    *("warmup_epochs", "close_mosaic"),
)
"""Arguments of ultralytics that are recorded beside those that the user gave."""


@dataclass(frozen=True)
class Tuned:
    """The result of a training with ultralytics.

    Attributes:
        metrics: of what is kept, by the names of ultralytics.
        arguments: of ultralytics that were used, with what it and Secateur chose.
    """

    metrics: Mapping[str, float]
    arguments: Mapping[str, Any]


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

    def trainer(self, network: nn.Module, epochs: int, name: str) -> Any:
        """Create a trainer for a network, with its data; the process is left as it was."""
        with _process_restored():
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
            epochs: passes over the training images.
            start: its metrics before; the first epoch is the best so far if not given.
            teacher: a network that returns raw outputs, which are learnt besides the labels.

        Returns:
            The metrics of what is kept, and the arguments that were used.
        """
        best, state = dict(start or {"fitness": -1.0}), deepcopy(network.state_dict())

        def after_epoch(trainer: Any) -> None:
            nonlocal best, state
            found = {
                name: float(value) for name, value in {**trainer.metrics, "fitness": trainer.fitness}.items()
            }
            report_progress(self.callbacks, "fine-tuning", trainer.epoch + 1, epochs, _total(trainer.tloss))
            report_note(self.callbacks, f"epoch {trainer.epoch + 1} of {epochs}: {in_words(found)}")
            if found["fitness"] >= best["fitness"]:
                best, state = found, deepcopy(trainer.ema.ema.state_dict())

        def after_batch(trainer: Any) -> None:
            # A callback may stop the training.
            report_progress(self.callbacks, "fine-tuning", trainer.epoch, epochs)

        trained = bare_copy(network)
        keep_from_rebuilding(trained)  # in the files that ultralytics writes
        with _process_restored():
            trainer = self._created(trained, epochs, "fine-tuning")
            trainer.add_callback("on_train_batch_end", after_batch)
            trainer.add_callback("on_model_save", after_epoch)
            with nullcontext() if teacher is None else _distilling(trainer, teacher):
                trainer.train()
        network.load_state_dict(state)
        used = {**vars(trainer.args), **_of_optimizer(trainer.optimizer)}
        return Tuned(best, {name: used[name] for name in (*_SHOWN, *self.settings.options) if name in used})

    def validate(self, network: nn.Module, split: str = "val") -> dict[str, float]:
        """Measure a copy of a network on the images of a split."""
        trainer = self.trainer(bare_copy(network), epochs=1, name="data")
        trainer.test_loader = trainer.get_dataloader(
            trainer.data[split], batch_size=self.settings.batch, rank=-1, mode="val"
        )
        found = trainer.get_validator()(model=trainer.model)
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
