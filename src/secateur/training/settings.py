"""Settings of training: optimizer, one phase of training, device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from secateur.settings import Need, Settings


def _rate(value: Any) -> float | str:
    if isinstance(value, str) and value == "auto":
        return value
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if isinstance(value, bool) or not 0 < rate < math.inf:
        raise ValueError(f"must be a number above 0, or auto, not {value!r}")
    return rate


class OptimizerSettings(Settings):
    """Choose an optimizer and its constants.

    Attributes:
        name: ``sgd``, or ``adamw``: Adam with decoupled weight decay.
        learning_rate: peak learning rate, which schedules multiply; ``auto`` finds one by short trials on
            copies of the network.
        momentum: of ``sgd``.
        nesterov: whether ``sgd`` uses Nesterov momentum.
        weight_decay: on weights; biases and normalisations are left alone.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float | Literal["auto"], BeforeValidator(_rate)] = "auto"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerSettings:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above zero")
        return self


_LEAST_UPDATES = 1000
"""Least number of optimizer steps of a phase whose length is not given."""


class FitSettings(Settings):
    """Choose how long and how to train.

    Attributes:
        epochs: passes over the training examples. If neither ``epochs`` nor ``updates`` is given, there are
            100 √n updates, where n is the number of batches in a pass, and at least 1,000: with a teacher,
            many passes over few images still help (arXiv 2106.05237).
        updates: optimizer steps, instead of epochs.
        optimizer: used if no optimizer object is given.
        schedule: how the learning rate changes over the phase.
        warmup: share of the steps that increase the learning rate to its peak.
        label_smoothing: weight of the uniform distribution in the target (arXiv 1512.00567, section 7).
        clip_norm: largest Euclidean norm of the gradient of all parameters together; 0 for no limit.
        ema_decay: decay of the exponential moving average of the weights, which is evaluated and kept instead
            of the last weights (0.99 covers about 100 steps); 0 for none.
        keep_best: keep the last network whose accuracy on the validation examples is not below the highest
            by more than the standard error of their difference, the network before training included.
            Otherwise, the last network is kept. Of perplexities and metrics of your own, the best is kept.
        patience: stop after so many epochs without a better metric or a lower validation loss, if given. It
            is useful with a constant learning rate, since schedules are planned for all epochs.
    """

    epochs: int | None = Field(default=None, ge=0)
    updates: int | None = Field(default=None, ge=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Literal["constant", "cosine", "one-cycle"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    clip_norm: float = Field(default=5.0, ge=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    keep_best: bool = True
    patience: int | None = Field(default=None, ge=1)

    def needs(self, name: str) -> Iterator[Need]:
        """List settings that need another one.

        Args:
            name: of these settings, for paths such as ``finetune.warmup``.
        """
        for setting in type(self).model_fields:
            if setting not in ("epochs", "updates"):
                stays = f"while {name}.epochs is 0", f"set {name}.epochs above 0"
                yield Need(f"{name}.{setting}", not self.trains, *stays)
        both = bool(self.epochs and self.updates)
        yield Need(f"{name}.epochs", both, f"while {name}.updates is given", f"leave {name}.updates out")
        adam = f"while {name}.optimizer.name is 'adamw'", f"set {name}.optimizer.name to 'sgd'"
        for setting in ("momentum", "nesterov"):
            yield Need(f"{name}.optimizer.{setting}", self.optimizer.name == "adamw", *adam)

    def with_rate(self, rate: float) -> FitSettings:
        """Return these settings with another peak learning rate."""
        optimizer = self.optimizer.model_copy(update={"learning_rate": rate})
        return self.model_copy(update={"optimizer": optimizer})

    @property
    def trains(self) -> bool:
        """Return whether there are any steps."""
        return self.updates is not None or self.epochs != 0

    def steps(self, per_epoch: int) -> int:
        """Return the number of optimizer steps.

        Args:
            per_epoch: batches in a pass over the examples.

        >>> FitSettings().steps(400), FitSettings().steps(4)
        (2000, 1000)
        >>> FitSettings(epochs=3).steps(4), FitSettings(updates=7).steps(4)
        (12, 7)
        """
        if self.updates is not None:
            return self.updates
        if self.epochs is None:
            return max(_LEAST_UPDATES, round(100 * math.sqrt(per_epoch)))
        return self.epochs * per_epoch

    def epochs_per_round(self, per_epoch: int) -> int:
        """Return the number of epochs between two evaluations: one, or several for at most ten rounds.

        Args:
            per_epoch: batches in a pass over the examples.

        >>> FitSettings(epochs=50).epochs_per_round(2), FitSettings(updates=100).epochs_per_round(2)
        (1, 5)
        """
        if self.updates is None and self.epochs is not None:
            return 1
        return max(1, math.ceil(self.steps(per_epoch) / (10 * per_epoch)))


class DeviceSettings(Settings):
    """Choose where and how to compute.

    Attributes:
        accelerator: ``auto`` takes a GPU if there is one.
        devices: how many of them, with one process each; on a CPU, how many processes.
        nodes: number of machines, each with so many devices.
        precision: ``bf16`` keeps weights in float32 and multiplies in bfloat16;
            ``auto`` does so where the device has units for it.
        channels_last: memory layout of images with the channels last; ``auto`` where it is faster.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    precision: Literal["auto", "float32", "bf16"] = "auto"
    channels_last: Literal["auto", "yes", "no"] = "auto"
