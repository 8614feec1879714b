"""Settings of training: optimizer, one phase of training, device."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from secateur.settings import Settings


class OptimizerSettings(Settings):
    """Which optimizer, and its constants.

    Attributes:
        name: stochastic gradient descent, or Adam with decoupled weight decay.
        learning_rate: base learning rate; schedules multiply it.
        momentum: of ``sgd``.
        nesterov: whether ``sgd`` looks ahead.
        weight_decay: on weights; biases and normalisations are left alone.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerSettings:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above zero")
        return self


class FitSettings(Settings):
    """One phase of training.

    Attributes:
        epochs: passes over the training examples.
        updates: optimizer steps instead of whole epochs, if given.
        optimizer: used if no optimizer object is handed in.
        schedule: how the learning rate changes over the phase.
        warmup: share of the phase that climbs to the base learning rate.
        label_smoothing: weight of the uniform distribution in the target (arXiv 1512.00567, section 7).
        clip_norm: largest Euclidean norm of the gradient of all parameters together; 0 for no limit.
        average: judge, and leave behind, the moving average of the weights instead of the last ones: the
            share of it that one step keeps (0.99 reaches back about 100 steps).
        keep_best: leave the network as it was at its best validation accuracy, not as it was last. Where
            the learning rate ends at zero, an epoch less than two standard errors below the best so far
            counts as the better one: it has learnt longer, and the difference is chance.
        patience: stop after so many epochs without a better one, if given; of use with a constant
            learning rate, since schedules are laid out for all epochs.
    """

    epochs: int = Field(default=10, ge=0)
    updates: int | None = Field(default=None, ge=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Literal["constant", "cosine", "one-cycle"] = "cosine"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    clip_norm: float = Field(default=0.0, ge=0)
    average: float = Field(default=0.0, ge=0, lt=1)
    keep_best: bool = True
    patience: int | None = Field(default=None, ge=1)


class DeviceSettings(Settings):
    """Where and how numbers are computed.

    Attributes:
        accelerator: ``auto`` takes a GPU if there is one.
        devices: how many of them, each with a process of its own; on a CPU, how many processes.
        nodes: how many machines take part, each with so many devices.
        precision: ``bf16`` keeps weights in float32 and multiplies in bfloat16;
            ``auto`` does so where the device has units for it.
        channels_last: memory layout of pictures with the channel innermost; ``auto`` where it gains.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    precision: Literal["auto", "float32", "bf16"] = "auto"
    channels_last: Literal["auto", "yes", "no"] = "auto"
