"""How good a network is on labelled examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secateur.errors import DataError
from secateur.graph.capture import mode_of
from secateur.heap import kept_where_allowed
from secateur.ranks import shares
from secateur.training.devices import Machine, make_machine
from secateur.training.events import TrainingCallback, tracked
from secateur.training.interrupt import Interruption
from secateur.training.losses import LossFunction, main_output
from secateur.untouched import untouched

Batches = Iterable[tuple[Tensor, Tensor]]

Metric = Callable[[nn.Module], float]
"""A judgement of one's own: how good a network is, larger being better."""


@dataclass(frozen=True)
class Evaluation:
    """What came of judging a network.

    Attributes:
        top1: share of examples whose class has the highest score, in [0, 1]; or what a metric of the
            user's says.
        loss: mean over the examples; zero beside a metric of the user's.
        examples: how many there were; zero beside a metric of the user's.
    """

    top1: float
    loss: float
    examples: int

    def __str__(self) -> str:
        if not self.examples:
            return f"metric {self.top1:.6g}"
        return f"top-1 {self.top1:.2%}, loss {self.loss:.4f} over {self.examples:,} examples"

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: accuracy first, then the loss."""
        return self.top1, -self.loss

    @property
    def error(self) -> float:
        """Standard error of the accuracy: how far chance alone moves it with so many examples.

        Of a metric of the user's nothing is known; it is taken at its word.

        >>> round(Evaluation(top1=0.9, loss=0.3, examples=98).error, 2)
        0.03
        """
        if not self.examples:
            return 0.0
        # One example more on either side, so that a perfect score on ten is not taken for certain.
        share = (self.top1 * self.examples + 1) / (self.examples + 2)
        return math.sqrt(share * (1 - share) / (self.examples + 2))


@kept_where_allowed()
def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    loss_fn: LossFunction = cross_entropy,
    machine: Machine | None = None,
    task: str = "evaluating",
    callbacks: Sequence[TrainingCallback] = (),
    interruption: Interruption | None = None,
) -> Evaluation:
    """Judges a network in evaluation mode; each module's mode is put back afterwards.

    Args:
        model: returns class scores, shape ``(batch, classes)``.
        batches: pairs of inputs and class indices; the same in all processes, which share the work.
        loss_fn: mean loss of a batch.
        machine: where to compute; made from default settings if not given.
        task: name of this work in ``Progress`` events.
        callbacks: receive progress.
        interruption: asked after each batch.

    Returns:
        Accuracy and loss over all examples, each example counted once.

    Raises:
        DataError: there are no examples.
        StoppedError: the user asked to stop.

    >>> inputs = torch.eye(3)
    >>> evaluate(nn.Identity(), [(inputs, torch.tensor([0, 1, 0]))]).top1  # doctest: +ELLIPSIS
    0.666...
    """
    machine = machine or make_machine()
    model.to(machine.device)
    sums = torch.zeros(3, dtype=torch.float64)  # right answers, losses, examples
    with (
        untouched(model),
        mode_of(model, training=False),
        torch.inference_mode(),
        machine.fabric.autocast(),
    ):
        parts = shares(batches, machine.ranks)
        for share in tracked(parts, task, callbacks, interruption, _length(batches)):
            if share.examples:
                inputs, targets = (part.to(machine.device) for part in share.batch)
                scores = main_output(model(inputs)).float()
                right, loss = float((scores.argmax(1) == targets).sum()), float(loss_fn(scores, targets))
                sums += torch.tensor([right, loss * len(targets), len(targets)])
    right, loss, examples = machine.ranks.sum(sums).tolist()
    if not examples:
        raise DataError("there are no examples to evaluate on")
    return Evaluation(right / examples, loss / examples, int(examples))


def _length(batches: Batches) -> int | None:
    return len(batches) if isinstance(batches, Sized) else None
