"""What a recipe works with: what it trains and judges with, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from secateur.graph import ExampleInputs
from secateur.recipes.callbacks import Callback
from secateur.recipes.latency_tuner import LatencyOptions
from secateur.recipes.measured import Measured
from secateur.training.devices import Machine
from secateur.training.evaluate import Batches, Metric
from secateur.training.fit import Keep, Surroundings, keep_nothing
from secateur.training.interrupt import Interruption
from secateur.training.journal import Journal
from secateur.training.settings import FitSettings

Train = Callable[[nn.Module, FitSettings], object]
"""A training loop of the user's: trains a network in place for one phase."""


@dataclass(frozen=True)
class Training:
    """What a recipe trains and judges with, where a list of batches is not enough.

    Attributes:
        batches: pairs of inputs and targets to rank and train with.
        calibration: what is scored, measured and reconstructed on where nothing is trained: training examples
            without augmentation; ``batches`` if not given.
        validation: judged after each epoch; the best network after the last cut is kept.
        metric: judges the network after each epoch, larger being better, instead of its accuracy on
            ``validation``: for tasks other than classification.
        optimizer: over parameters of the network, or some of them; used throughout, and its state cut with
            the parameters. Made from the recipe if not given.
        train: called with the network and the settings of the phase after each cut, instead of the training
            loop of Secateur. Scores are then collected in a pass of their own.
        check_inputs: what each cut is verified on; the example inputs if not given.
        latency: how latency is measured, where a budget limits it or widths are those that run well.

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
class RecipeContext:
    """Where a recipe runs, who is told, and what an earlier run left.

    Attributes:
        machine: devices, precision and processes.
        callbacks: receive what happens.
        interruption: checked between steps.
        keep: called when the network is worth writing to disk; with ``"best"`` only after the last cut.
        journal: keeps what is needed to resume after a kill. A call with the same arguments, and the network
            as it was at first, then continues to the same bits.
        measured: scores and width curves of this network that an earlier call measured.
    """

    machine: Machine
    callbacks: Sequence[Callback] = ()
    interruption: Interruption = field(default_factory=Interruption)
    keep: Keep = keep_nothing
    journal: Journal = field(default_factory=Journal)
    measured: Measured | None = None

    def training(self, keep: Keep) -> Surroundings:
        """Return the part that a fit needs."""
        return Surroundings(self.machine, self.callbacks, self.interruption, keep, self.journal)
