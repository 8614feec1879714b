"""Describe the data and tools with which a recipe trains and evaluates, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from secateur.graph import ChannelGraph, ExampleInputs
from secateur.recipes.callbacks import Callback
from secateur.recipes.latency_tuner import LatencyOptions
from secateur.recipes.measured import Measured
from secateur.training.context import RunContext
from secateur.training.evaluate import Batches, Metric
from secateur.training.settings import FitSettings

Train = Callable[[nn.Module, FitSettings], object]
"""A user's training loop: trains a network in place for one phase."""


@dataclass(frozen=True)
class Training:
    """Data and tools for training and evaluation, where a list of batches is not enough.

    Attributes:
        batches: pairs of inputs and targets, or mappings of named arguments, to rank and train with.
        calibration: what is scored, measured and reconstructed on where nothing is trained: training examples
            without augmentation; ``batches`` if not given.
        validation: judged after each epoch; the best network after the last cut is kept.
        metric: judges the network after each epoch, larger being better, instead of its accuracy on
            ``validation``: for tasks other than classification.
        optimizer: over parameters of the network, or some of them; used throughout, and its state cut with
            the parameters. Created from the recipe if not given.
        train: called with the network and the settings of the phase after each cut, instead of the training
            loop of Secateur. Then scores are collected in a separate pass. If it returns a
            :class:`secateur.training.loop.FitState`, this becomes one of ``fits`` of the result.
        check_inputs: the inputs for the verification of each cut; the example inputs if not given.
        latency: how latency is measured, if a budget limits it or widths must be efficient on the device.

    Example:
        >>> Training([], metric=lambda model: 1.0).validation is None
        True
    """

    batches: Batches | None = None
    calibration: Batches | None = None
    validation: Batches | None = None
    metric: Metric | None = None
    optimizer: Optimizer | None = None
    train: Train | None = None
    check_inputs: ExampleInputs | None = None
    latency: LatencyOptions | None = None


@dataclass(frozen=True)
class RecipeContext(RunContext):
    """Store what a recipe needs besides the network and the data.

    With a journal, a call with the same arguments and the original network continues a run that was
    killed, with bit-for-bit the same result. ``save`` is called with ``"best"`` only after the last cut.

    Attributes:
        callbacks: receive progress, epochs, scores and cuts.
        measured: scores and width curves of this network that an earlier call measured.
        graph: channel graph of this network, if it was traced before.
    """

    callbacks: Sequence[Callback] = ()
    measured: Measured | None = None
    graph: ChannelGraph | None = None
